"""Pictures of one scene that is known at every point: any shift and scale of it is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.picture_files import saved

SHIFT = (2.5, -1.25)


def scene_picture(
    width: int,
    height: int,
    *,
    scale: float,
    shift: tuple[float, float],
    seed: int = 0,
    lens: float | None = None,
) -> np.ndarray:
    """uint8 (height, width, 3), Gaussian spots through a lens that blurs by `lens`: without it, by
    half a pixel of the picture. `shift` is where its center is."""
    rng = np.random.default_rng(seed)
    at_x, at_y = rng.uniform(-340, 340, 1500), rng.uniform(-260, 260, 1500)
    spot = np.exp(rng.uniform(np.log(1.5), np.log(25), 1500))
    spread = np.hypot(spot, 0.5 * scale if lens is None else lens)
    height_of_spot = rng.choice([-60, 60], 1500) * (spot / spread) ** 2
    x = scale * (np.arange(width) + 0.5 - width / 2) + shift[0]
    y = scale * (np.arange(height) + 0.5 - height / 2) + shift[1]
    columns = np.exp(-(((x[:, None] - at_x) / spread) ** 2) / 2)
    rows = np.exp(-(((y[:, None] - at_y) / spread) ** 2) / 2)
    value = 128 + 0.4 * (rows * height_of_spot) @ columns.T
    return np.repeat(np.clip(np.rint(value), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def write_pair(folder: Path, number: int, *, shift: tuple[float, float] = SHIFT) -> None:
    """`<number>_HR.png` and the `<number>_LR4.png` that shows a quarter of its pixels, shifted."""
    hq = scene_picture(240, 180, scale=1.0, shift=(0, 0), seed=number)
    lq = scene_picture(60, 45, scale=4.0, shift=shift, seed=number)
    for pixels, name in ((hq, f"{number}_HR.png"), (lq, f"{number}_LR4.png")):
        (folder / name).write_bytes(saved(Image.fromarray(pixels)))


def pairs_of(folder: Path) -> dict[str, str]:
    """The setting `pairs` of what `write_pair` writes."""
    suffixes = {"hq_suffix": "_HR", "lq_suffix": "_LR4"}
    return {"hq": str(folder), "lq": str(folder), "match": "suffix", **suffixes}
