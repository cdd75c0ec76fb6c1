"""Restoring a picture in tiles against restoring it in one piece, by ways of joining the tiles.

    python -m tests.benchmarks.tiles [MODEL] [--photos FOLDER] [--tile 320] [--count 3]

Each picture, at 1024x768, is made LQ by area at x4 and JPEG 60, then restored in two steps. Shown
are the PSNR of the tiled against the whole picture, for each; the largest step at a tile's line, a
mean change over it beyond that of the whole, 8-bit levels; the high frequencies lost in a plain
gradient that replaces the picture's left half, the most and the least (negative: gained); and the
CPU time of the network over that of the whole. MODEL is by default the demo's, photos those of
scikit-image.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
import torch
from torch import Tensor

from tests.benchmarks.tile_ways import STEPS, Way, ways
from training.flowmap.interpolant import sample
from training.flowmap.system import FlowMapRestorer
from training.inference.files import default_model
from training.inference.upscaler import Upscaler

SIZE = (1024, 768)
PICTURES = ("astronaut", "coffee", "rocket")


class Found(NamedTuple):
    """What tiles did to one picture."""

    psnr: float
    step: float
    lost: float
    """Share of the high frequencies."""
    time: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--tile", type=int, default=320)
    parser.add_argument("--count", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    restorer = Upscaler.from_pretrained(given.model or default_model(), device="cpu").restorer
    assert isinstance(restorer, FlowMapRestorer)
    found: dict[str, list[Found]] = {}
    for photo in list(_photos(given.photos))[: given.count]:
        for name, one in _compared(restorer, photo, given.tile):
            found.setdefault(name, []).append(one)
    print(f"{SIZE[0]}x{SIZE[1]}, tiles of {given.tile} pixels, {given.count} pictures\n")
    print("| tiles | PSNR against one piece, dB | largest step | lost in a gradient, % | time |")
    print("|---|---|---|---|---|")
    for name, rows in found.items():
        psnrs = " ".join(f"{one.psnr:.1f}" for one in rows)
        lost = " to ".join(f"{100 * each(one.lost for one in rows):.1f}" for each in (max, min))
        step, spent = max(one.step for one in rows), np.median([one.time for one in rows])
        print(f"| {name} | {psnrs} | {step:.2f} | {lost} | {spent:.2f} |")


def _photos(folder: Path | None) -> Iterator[np.ndarray]:
    """RGB uint8 at SIZE."""
    if folder is None:
        pictures = (getattr(skimage.data, name)() for name in PICTURES)
    else:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        pictures = (_read(np.fromfile(path, np.uint8))[..., ::-1] for path in paths)
    for picture in pictures:
        yield cv2.resize(np.ascontiguousarray(picture), SIZE, interpolation=cv2.INTER_CUBIC)


def _lq(photo: np.ndarray) -> Tensor:
    small = cv2.resize(photo, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = _read(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])[1])
    lq = cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC)
    return torch.from_numpy(lq).permute(2, 0, 1)[None].float() / 127.5 - 1


def _read(file: np.ndarray) -> np.ndarray:
    picture = cv2.imdecode(file, cv2.IMREAD_COLOR)
    assert picture is not None, "a picture"
    return picture


@torch.inference_mode()
def _compared(
    restorer: FlowMapRestorer, photo: np.ndarray, tile: int
) -> Iterator[tuple[str, Found]]:
    """By the names of the ways."""
    velocity = restorer.net.velocity(restorer.guidance)
    half = SIZE[0] // 2
    sky = photo.copy()
    sky[:, :half] = np.linspace(90, 200, SIZE[1])[:, None, None] + np.linspace(0, 20, half)[:, None]
    lq, lq_sky = (restorer.codec.encode(_lq(one)) for one in (photo, sky))

    def run(restored: Callable[[Tensor], Tensor], latents: Tensor) -> tuple[Tensor, float]:
        began = time.process_time()
        made = restored(latents)
        took = time.process_time() - began
        return (restorer.codec.decode(made).clamp(-1, 1) + 1) * 127.5, took

    def one_piece(x: Tensor) -> Tensor:
        return sample(velocity, x, STEPS)

    whole, seconds = run(one_piece, lq)
    fine = _fine(run(one_piece, lq_sky)[0][..., :half])
    for way in ways(restorer, tile):
        picture, took = run(way.restored, lq)
        lost = 1 - _fine(run(way.restored, lq_sky)[0][..., :half]) / fine
        difference = picture - whole
        psnr = 10 * math.log10(255**2 / float(difference.square().mean()))
        step = _largest_step(difference, way, restorer.codec.downsample)
        yield way.name, Found(psnr, step, lost, took / seconds)


def _largest_step(difference: Tensor, way: Way, down: int) -> float:
    steps = []
    for turned in (difference, difference.mT):
        lines = [down * line for line in way.lines(turned.shape[-1] // down)]
        steps += [float((turned[..., at] - turned[..., at - 1]).mean()) for at in lines]
    return max(map(abs, steps))


def _fine(picture: Tensor) -> float:
    """Root mean square of what a blur takes away, far from the borders."""
    levels = picture[0].permute(1, 2, 0).numpy()
    fine = levels - cv2.GaussianBlur(levels, (0, 0), 2)
    return float(np.sqrt(np.square(fine[32:-32, 32:-32]).mean()))


if __name__ == "__main__":
    main()
