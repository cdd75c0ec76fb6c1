"""What `Upscaler` takes beside its network and codec, and files beside a plain loop.

    python -m tests.benchmarks.upscale_speed [MODEL] [--steps 1] [--rounds 5] [--files 4]

256x256 becomes 1024x1024, on one thread. Printed is CPU time over that of network and codec alone,
of 1024x1024 and of what `Upscaler` gives them: 64 mirrored pixels on every side, which are 1.27
times as many. All of those are encoded and seen by the network, and decoded by what is compared
with; `Upscaler` decodes no more than it needs. Then megapixels a CPU second of a folder of PNG
files, by `upscale_all` and by a loop of Pillow, the model and Pillow, which keeps no colors and no
metadata. Both alternate; shown are medians. MODEL is by default the demo's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from training.flowmap.interpolant import sample
from training.flowmap.system import FlowMapRestorer
from training.inference.batch import upscale_all
from training.inference.files import UpscaleSettings, default_model
from training.inference.jobs import plan_jobs
from training.inference.upscaler import Upscaler

SIDE, SCALE = 256, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=4, help="0 leaves them out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    upscaler = Upscaler.from_pretrained(given.model or default_model(), device="cpu")
    restorer = upscaler.restorer
    assert isinstance(restorer, FlowMapRestorer)
    image = np.ascontiguousarray(skimage.data.astronaut()[:SIDE, 128 : 128 + SIDE])
    large = cv2.resize(image, (SCALE * SIDE, SCALE * SIDE), interpolation=cv2.INTER_CUBIC)
    padded = np.pad(large, [(restorer.margin,) * 2] * 2 + [(0, 0)], mode="reflect")

    def ours() -> None:
        upscaler.upscale(image, scale=SCALE, steps=given.steps)

    def alone(lq: np.ndarray) -> Callable[[], None]:
        return lambda: _ignored(_restored(restorer, lq, given.steps))

    whole, bare, bare_padded = _medians(given.rounds, ours, alone(large), alone(padded))
    print(f"`upscale` {whole:.2f} s: {whole / bare:.2f} of network and codec alone, ", end="")
    print(f"{whole / bare_padded:.2f} of these with {restorer.margin} pixels around", end="")
    print(f" ({padded.size / large.size:.2f} times the pixels)")
    if not given.files:
        return
    with tempfile.TemporaryDirectory() as name:
        _compare_files(Path(name), image, upscaler, given)


def _compare_files(
    folder: Path,
    image: np.ndarray,
    upscaler: Upscaler,
    given: argparse.Namespace,
) -> None:
    restorer, steps = upscaler.restorer, given.steps
    assert isinstance(restorer, FlowMapRestorer)
    (folder / "in").mkdir()
    for number in range(given.files):
        turned = np.ascontiguousarray(np.rot90(image, number))
        Image.fromarray(turned).save(folder / "in" / f"{number}.png")

    def ours() -> None:
        jobs = plan_jobs(
            str(folder / "in"), str(folder / "ours"), overwrite=True, skip_existing=False
        ).jobs
        report = upscale_all(jobs, upscaler, UpscaleSettings(scale=SCALE, steps=steps))
        assert not report.failed

    def plain() -> None:
        (folder / "plain").mkdir(exist_ok=True)
        for path in (folder / "in").iterdir():
            small = np.asarray(Image.open(path).convert("RGB"))
            lq = cv2.resize(small, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
            levels = ((_restored(restorer, lq, steps).clamp(-1, 1) + 1) * 127.5).round()
            made = levels[0].permute(1, 2, 0).to(torch.uint8).numpy()
            Image.fromarray(made).save(folder / "plain" / f"{path.stem}.png")

    megapixels = given.files * (SCALE * SIDE) ** 2 / 1e6
    first, second = (megapixels / spent for spent in _medians(given.rounds, ours, plain))
    print(f"files: {first:.2f} megapixels/s, a plain loop {second:.2f}: {first / second:.2f} of it")


@torch.inference_mode()
def _restored(restorer: FlowMapRestorer, lq: np.ndarray, steps: int) -> Tensor:
    pixels = torch.from_numpy(lq).permute(2, 0, 1)[None].float() / 127.5 - 1
    velocity = restorer.net.velocity(restorer.guidance)
    return restorer.codec.decode(sample(velocity, restorer.codec.encode(pixels), steps))


def _medians(rounds: int, *works: Callable[[], None]) -> list[float]:
    """CPU seconds of each, which alternate; the first round is not counted."""
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + 1):
        for work, each in zip(works, spent, strict=True):
            began = time.process_time()
            work()
            each.append(time.process_time() - began)
    return [statistics.median(each[1:]) for each in spent]


def _ignored(_: Tensor) -> None: ...


if __name__ == "__main__":
    main()
