"""Short trials on a CPU: which codec and which network should `flowmapsr-tiny` have?

    python -m tests.benchmarks.tiny_trials PHOTOS HELD_OUT WORK --seconds 400 [--only NAME ...]

Every trial trains for the same CPU seconds of one thread (flow matching, crops of 128², batches of
8), so a costly network gets fewer steps. Judged by the PSNR of one step from t = 1 over that of
bicubic, on the middle 256² of held-out photos. WORK keeps the datasets for later calls.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import open_dataset
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import stored_latents
from datagen.io import storage
from datagen.samples.codecs import DctCodec
from pipelines.recipes.load import dataset_recipe
from tests.benchmarks.gpu.photos import middles, smallest_first
from training.evaluation.photos import degraded_photos
from training.flowmap.interpolant import interpolate
from training.flowmap.network import FlowMapNet
from training.inference.pictures.pixels import bicubic
from training.settings.evaluation import EvaluationSettings
from training.settings.model import ModelSettings

SIDE, MIDDLE, HELD_OUT = 128, 256, 16
SCALES = (1.0, 2.0, 4.0, 8.0)
BATCH, RATE, WARMUP, LAST_FRACTION = 8, 1e-3, 50, 0.05
TIMES = 4
"""Training times are 1/4 .. 1, half of them 1: the one that PSNR is measured from."""
CHAINS = {"mild": "flowmapsr-tiny", "strong": "realesrgan"}
"""Recipes whose degradation is tried, at the scales of `flowmapsr-tiny`."""
SCALE_RANGE = "degradation.scale=[1, 8]"
NETWORK = {
    "layers_per_block": 1,
    "norm_groups": 16,
    "time_channels": 64,
    "prompt_channels": 64,
    "input_gain": True,
    "guidance_conditioning": False,
}


@dataclass(frozen=True)
class Trial:
    codec: str
    side: int
    channels: tuple[int, ...]
    chain: str = "mild"
    network: Mapping[str, Any] = field(default_factory=dict)


TRIALS = {
    "dct8": Trial("dct", 8, (64, 96)),
    "dct4": Trial("dct", 4, (32, 64)),
    "dct4, deeper": Trial("dct", 4, (48, 64, 96)),
    "shuffle4": Trial("shuffle", 4, (32, 64)),
    "learned4": Trial("learned", 4, (32, 64)),
    "dct2": Trial("dct", 2, (16, 32, 64)),
    "dct8, wider": Trial("dct", 8, (96, 128), network={"layers_per_block": 2}),
    "dct8, no gain": Trial("dct", 8, (64, 96), network={"input_gain": False}),
    "dct8, attention": Trial("dct", 8, (64, 96), network={"transformer_layers": (0, 1)}),
    "dct8, strong": Trial("dct", 8, (64, 96), "strong"),
    "dct4, strong": Trial("dct", 4, (32, 64), "strong"),
    "learned4, strong": Trial("learned", 4, (32, 64), "strong"),
}


@dataclass(frozen=True)
class Photos:
    """Pairs as uint8 (N, 3, H, W)."""

    hq: Tensor
    lq: Tensor


class BlockCodec(nn.Module):
    """Blocks of `side` pixels as channels, after an orthonormal DCT or as they are."""

    kernels: Tensor

    def __init__(self, side: int, *, dct: bool) -> None:
        super().__init__()
        index = torch.arange(side)
        waves = torch.cos(math.pi / side * (index + 0.5) * index[:, None]) * math.sqrt(2 / side)
        waves[0] /= math.sqrt(2)
        blocks = torch.einsum("vy,ux->vuyx", waves, waves) if dct else torch.eye(side**2)
        kernels = torch.zeros(3, side**2, 3, side, side)
        for color in range(3):
            kernels[color, :, color] = blocks.reshape(side**2, side, side)
        self.register_buffer("kernels", kernels.flatten(0, 1))
        self.side, self.channels = side, 3 * side**2

    def encode(self, pixels: Tensor) -> Tensor:
        return functional.conv2d(pixels, self.kernels, stride=self.side)

    def decode(self, latents: Tensor) -> Tensor:
        return functional.conv_transpose2d(latents, self.kernels, stride=self.side)


class LearnedCodec(nn.Module):
    """A small convolutional autoencoder, 16 channels at a quarter of the size; trained first."""

    def __init__(self, width: int = 48, channels: int = 16) -> None:
        super().__init__()
        self.side, self.channels = 4, channels

        def convolutions(start: int, *widths: int) -> list[nn.Module]:
            sizes = zip((start, *widths), widths, strict=False)
            return [m for a, b in sizes for m in (nn.Conv2d(a, b, 3, padding=1), nn.SiLU())]

        self.encode = nn.Sequential(
            nn.PixelUnshuffle(4),
            *convolutions(48, width, width),
            nn.Conv2d(width, channels, 3, padding=1),
        )
        self.decode = nn.Sequential(
            *convolutions(channels, width, width),
            nn.Conv2d(width, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    for name in ("photos", "held_out", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seconds", type=float, default=400.0, help="CPU seconds of a trial")
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| trial | parameters, M | GMAC at 256² | steps | x1 | x2 | x4 | x8 | mean gain, dB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in given.only:
        chain = TRIALS[name].chain
        photos = training_photos(given.photos.absolute(), given.work.absolute() / chain, chain)
        tests = held_out(given.held_out.absolute(), given.work.absolute(), chain)
        print(f"| {name} |{run(TRIALS[name], photos, tests, given.seconds)}", flush=True)


def training_photos(photos: Path, output: Path, chain: str) -> Photos:
    """Crops of the chain's dataset, which is built without loss by `dct8`."""
    changes = [
        f"sources=[{photos}]",
        f"output={output}",
        SCALE_RANGE,
        "samples_per_photo=10",
        f"buckets.budgets=[{{side: {SIDE}}}]",
        "buckets.max_aspect_ratio=1.0",
        "crop=random",
        "augmentation.rotate90_probability=0.5",
        "codec={kind: dct8}",
    ]
    build_in_process(dataset_recipe(CHAINS[chain], changes), threads=2)
    hq: list[Tensor] = []
    lq: list[Tensor] = []
    codec = DctCodec()
    for shard in open_dataset(str(output)).manifest.shards:
        for sample in read_shard(storage.join(str(output), shard.path)):
            latents = stored_latents(sample)
            for images, stored in ((hq, latents["hq"]), (lq, latents["lq"])):
                decoded = codec.decode(torch.from_numpy(stored[None]).float())[0]
                images.append(_levels(decoded))
    return Photos(torch.stack(hq), torch.stack(lq))


def held_out(photos: Path, work: Path, chain: str) -> dict[float, Photos]:
    """Middles of some of the photos and their bicubic enlargements, by scale."""
    every = smallest_first(photos)
    folder = middles(every[:: max(1, len(every) // HELD_OUT)], work / "held-out", side=MIDDLE)
    places = ["sources=[/none]", "output=/none"]
    degradation = dataset_recipe(CHAINS[chain], [*places, SCALE_RANGE]).degradation
    found = {}
    for scale in SCALES:
        settings = EvaluationSettings(photos=str(folder))
        pairs = list(degraded_photos(settings, degradation, scale))
        enlarged = [bicubic(pair.small, (MIDDLE, MIDDLE)) for pair in pairs]
        found[scale] = Photos(
            *(
                torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
                for images in ([pair.original for pair in pairs], enlarged)
            )
        )
    return found


def run(trial: Trial, photos: Photos, tests: Mapping[float, Photos], seconds: float) -> str:
    """Trains and judges; a row of the table."""
    torch.manual_seed(0)
    codec: Any = LearnedCodec()
    if trial.codec == "learned":
        _train(codec, photos, 0.3 * seconds, _reconstruction)
        seconds *= 0.7
    else:
        codec = BlockCodec(trial.side, dct=trial.codec == "dct")
    codec.requires_grad_(False)
    blocks = len(trial.channels)
    settings = {"transformer_layers": (0,) * blocks, "attention_heads": (4,) * blocks}
    model = {**NETWORK, **settings, "block_channels": trial.channels, **trial.network}
    net = FlowMapNet(ModelSettings.model_validate(model), latent_channels=codec.channels)
    ones = torch.ones(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(codec.encode(torch.zeros(1, 3, MIDDLE, MIDDLE)), ones, ones)

    def error(net: nn.Module, hq: Tensor, lq: Tensor, generator: torch.Generator) -> Tensor:
        x0, x1 = codec.encode(hq), codec.encode(lq)
        t = torch.randint(1, TIMES + 1, (BATCH,), generator=generator) / TIMES
        t = torch.where(torch.rand(BATCH, generator=generator) < 0.5, torch.ones(BATCH), t)
        u = net(interpolate(x0, x1, t), t, t)
        return (u - (x1 - x0)).square().mean()

    steps = _train(net, photos, seconds, error)
    numbers = sum(p.numel() for p in net.parameters()) / 1e6
    gains = {scale: _gain(net, codec, pairs) for scale, pairs in tests.items()}
    cells = [f"{numbers:.2f}", f"{counter.get_total_flops() / 2e9:.2f}", str(steps)]
    cells += [f"{psnr:.2f} ({gain:+.2f})" for psnr, gain in gains.values()]
    return " " + " | ".join([*cells, f"{np.mean([g for _, g in gains.values()]):+.3f}"]) + " |"


Error = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def _train(net: nn.Module, photos: Photos, seconds: float, error: Error) -> int:
    """AdamW with a cosine over the CPU seconds; how many steps it made."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(1)
    start, step = time.process_time(), 0
    while (share := (time.process_time() - start) / seconds) < 1:
        cosine = LAST_FRACTION + (1 - LAST_FRACTION) * (1 + math.cos(math.pi * share)) / 2
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * cosine
        rows = torch.randint(len(photos.hq), (BATCH,), generator=generator)
        loss = error(net, _values(photos.hq[rows]), _values(photos.lq[rows]), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
    return step


def _reconstruction(net: nn.Module, hq: Tensor, lq: Tensor, generator: torch.Generator) -> Tensor:
    both: Any = net
    images = torch.cat([hq, lq])
    return (both.decode(both.encode(images)) - images).square().mean()


@torch.no_grad()
def _gain(net: nn.Module, codec: Any, photos: Photos) -> tuple[float, float]:
    """PSNR of one step, and how much above that of its input: means over the photos."""
    ones = torch.ones(1)
    found = []
    for hq, lq in zip(photos.hq, photos.lq, strict=True):
        x = codec.encode(_values(lq)[None])
        restored = _levels(codec.decode(x - net(x, ones, ones)))[0]
        found.append([_psnr(restored, hq), _psnr(restored, hq) - _psnr(lq, hq)])
    psnr, gain = np.mean(found, axis=0)
    return float(psnr), float(gain)


def _psnr(image: Tensor, other: Tensor) -> float:
    return -10 * math.log10(float((image.float() - other.float()).square().mean()) / 255**2)


def _values(levels: Tensor) -> Tensor:
    return levels.float() / 127.5 - 1


def _levels(values: Tensor) -> Tensor:
    return ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


if __name__ == "__main__":
    main()
