"""Times ELIR: a training step with expanded blocks over the same with blocks collapsed on the fly,
restoring in fp32 over bf16, and our restoring over a plain PyTorch rendering of the same networks.

Run as `python -m tests.benchmarks.elir_speed`. Networks of the face tasks at 256 pixels with random
weights, one thread. What is compared alternates, as a machine's speed drifts; each ratio is the
median over the rounds. bf16 gains where the processor has units for it (AVX512-BF16, AMX).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from datagen.degradation.settings import DegradationSettings
from training.elir.collapsible import CollapsibleConv, collapse, collapsed_once
from training.elir.model_folder import PARTS, ElirConfig
from training.elir.network import Networks, build
from training.elir.objective import elir_losses
from training.elir.restorer import ElirRestorer
from training.settings.elir import ElirModelSettings, LatentConsistency

ROUNDS = 3
SIDE, BATCH = 256, 4
"""Pixels, as of the face tasks, and samples of a training step."""
COLLAPSED_GAIN, BF16_GAIN, OVERHEAD = 1.5, 1.8, 1.05
SETTINGS = LatentConsistency()


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    units = sorted(_processor_flags() & {"avx512_bf16", "amx_bf16"})
    print(f"bf16 units of this processor: {', '.join(units) or 'none'}")
    steps = _training_step(collapsed=False), _training_step(collapsed=True)
    expanded, on_the_fly = _alternate(*steps)
    del steps
    x = torch.rand(1, 3, SIDE, SIDE)
    config = _config()
    nets = {dtype: _restoring() for dtype in ("fp32", "bf16")}
    ours = {
        "fp32": ElirRestorer(nets["fp32"], config, torch.float32),
        "bf16": ElirRestorer(nets["bf16"], config, torch.bfloat16),
    }
    plain = _restoring()
    with torch.inference_mode():
        times = _alternate(
            lambda: _plain_restore(plain, x),
            lambda: ours["fp32"](2 * x - 1, steps=SETTINGS.segments),
            lambda: ours["bf16"](2 * x - 1, steps=SETTINGS.segments),
        )
    by_plain, fp32, bf16 = times
    rows = [
        ("training step, expanded over collapsed on the fly", expanded, on_the_fly, COLLAPSED_GAIN),
        (f"restoring {SIDE} pixels, fp32 over bf16", fp32, bf16, BF16_GAIN),
    ]
    kept = True
    print("\n| what | seconds | seconds | ratio | at least |\n|---|---|---|---|---|")
    for what, one, other, least in rows:
        ratio = statistics.median(a / b for a, b in zip(one, other, strict=True))
        kept &= ratio >= least
        print(f"| {what} | {min(one):.3f} | {min(other):.3f} | {ratio:.2f} | {least} |")
    overhead = statistics.median(a / b for a, b in zip(fp32, by_plain, strict=True))
    kept &= overhead <= OVERHEAD
    print(f"\nour restoring over plain PyTorch: {overhead:.3f}, at most {OVERHEAD}")
    print("all kept" if kept else "NOT all kept")
    return 0 if kept else 1


def _alternate(*calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call in every round."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(ROUNDS + 1):
        for call, own in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if number:  # the first one touches memory
                own.append(time.perf_counter() - start)
    return seconds


class _Expanded(nn.Module):
    """A block as it is written: two convolutions."""

    def __init__(self, block: CollapsibleConv) -> None:
        super().__init__()
        self.pair = nn.Sequential(block.wide, block.narrow)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x)


def _expand(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, CollapsibleConv):
            setattr(module, name, _Expanded(child))
        else:
            _expand(child)


def _training_step(*, collapsed: bool) -> Callable[[], None]:
    """Losses and gradients of a batch."""
    nets = build(128, 1, expand=4)
    if not collapsed:
        for network in (nets.coarse, nets.field):
            _expand(network)
    x, y = torch.rand(2, BATCH, 3, SIDE, SIDE)
    noise, t = torch.randn(BATCH, 16, SIDE // 8, SIDE // 8), torch.rand(BATCH) * 0.6

    def step() -> None:
        with collapsed_once(nets.field):
            losses = elir_losses(nets, x, y, t, noise, SETTINGS)
        losses.total.backward()
        for part in PARTS:
            getattr(nets, part).zero_grad()

    return step


def _restoring() -> Networks:
    torch.manual_seed(0)
    nets = build(128, 1, expand=4)
    for part in PARTS:
        setattr(nets, part, collapse(getattr(nets, part)).eval().requires_grad_(False))
    return nets


def _plain_restore(nets: Networks, y: Tensor) -> Tensor:
    """What restoring is, in as few words of PyTorch as it takes."""
    z = nets.coarse(nets.encoder(y))
    z = z + SETTINGS.sigma_s * torch.randn_like(z)
    for i in range(SETTINGS.segments):
        z = z + nets.field(z, torch.full((len(z),), i / SETTINGS.segments)) / SETTINGS.segments
    return nets.decoder(z).clamp(0, 1)


def _config() -> ElirConfig:
    operations = [{"kind": "downscale"}, {"kind": "resize_back"}]
    return ElirConfig(
        model=ElirModelSettings(),
        latent_channels=16,
        objective=SETTINGS,
        degradation=DegradationSettings.model_validate({"operations": operations}),
        stage="elir",
        recipe_digest="",
        dataset_digest="",
    )


def _processor_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()}


if __name__ == "__main__":
    sys.exit(main())
