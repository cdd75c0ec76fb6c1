"""Restoring a picture in tiles against restoring it in one piece, by ways of joining the tiles.

    python -m tests.benchmarks.tiles MODEL PHOTOS [--tile 512] [--count 3]

Each photo, enlarged to 2048x1536, is made LQ by area at x4 and JPEG 60, then restored in two steps.
PSNR is that of the tiled against the whole picture; a step is the mean change over a tile's line
beyond that of the whole, 8-bit levels. Compared are
- crop: tiles with 32 pixels around, cut off and joined (as Real-ESRGAN does),
- own norms: evenly spaced tiles blended in latents at every evaluation, as ours,
- ours: the same with group norms that all tiles share.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from torch import Tensor

from datagen.tiles.reach import tiled
from training.flowmap.interpolant import sample
from training.flowmap.system import FlowMapRestorer
from training.inference.tiler import OVERLAP, Tiler
from training.inference.tiling import blend, tile_plan
from training.inference.upscaler import Upscaler

SIZE = (2048, 1536)
AROUND = 32
"""Pixels that a cropped tile sees beyond its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--count", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    upscaler = Upscaler.from_pretrained(given.model, device="cpu")
    restorer = upscaler.restorer
    assert isinstance(restorer, FlowMapRestorer)
    paths = sorted(path for path in given.photos.iterdir() if path.is_file())
    print(
        f"tile {given.tile}, {SIZE[0]}x{SIZE[1]}; PSNR dB / step at lines / time over the whole's"
    )
    for path in paths[: given.count]:
        print(path.name, *_compared(restorer, _lq(path), given.tile), sep="  ")


def _lq(path: Path) -> Tensor:
    photo = cv2.resize(cv2.imread(str(path)), SIZE, interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(photo, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 1)
    lq = cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC)[..., ::-1]
    return torch.from_numpy(lq.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.inference_mode()
def _compared(restorer: FlowMapRestorer, lq: Tensor, tile: int) -> list[str]:
    codec, down = restorer.codec, restorer.codec.downsample
    latents, side, overlap = codec.encode(lq), tile // down, OVERLAP // down
    velocity = restorer.net.velocity(restorer.guidance)
    tiler, multiple = Tiler(tile=tile), restorer.net.downsample

    def own(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return blend(lambda part: velocity(part, t, s), x, side, overlap, multiple=multiple)

    def ours(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return tiler(
            restorer.net, lambda part: velocity(part, t, s), x, pixels=down, multiple=multiple
        )

    def crop(x: Tensor) -> Tensor:
        reach = AROUND // down
        return tiled(lambda part: sample(velocity, part, 2), x, side - 2 * reach, reach=reach)

    whole, seconds = _levels(codec.decode, lambda x: sample(velocity, x, 2), latents)
    cut = side - 2 * (AROUND // down)
    rows = {
        "crop": (crop, [start for start in range(0, latents.shape[-1], cut)]),
        "own norms": (lambda x: sample(own, x, 2), None),
        "ours": (lambda x: sample(ours, x, 2), None),
    }
    plan = tile_plan(latents.shape[-1], side, overlap, multiple)
    texts = []
    for name, (restored, starts) in rows.items():
        picture, took = _levels(codec.decode, restored, latents)
        difference = picture - whole
        starts = starts or [edge for start in plan for edge in (start, start + side)]
        lines = [down * start for start in starts if 0 < start < latents.shape[-1]]
        steps = [
            abs(float((difference[..., line] - difference[..., line - 1]).mean())) for line in lines
        ]
        psnr = 10 * math.log10(255**2 / float(difference.square().mean()))
        texts.append(f"{name} {psnr:.1f} / {max(steps):.2f} / {took / seconds:.2f}")
    return texts


def _levels(
    decode: Callable[[Tensor], Tensor], restored: Callable[[Tensor], Tensor], latents: Tensor
) -> tuple[Tensor, float]:
    """The picture in 8-bit levels, not rounded, and the CPU seconds of its latents."""
    began = time.process_time()
    made = restored(latents)
    took = time.process_time() - began
    return (decode(made).clamp(-1, 1) + 1) * 127.5, took


if __name__ == "__main__":
    main()
