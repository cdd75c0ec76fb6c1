"""Pictures of a stage while it trains: decoded samples side by side, and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datagen.io import storage
from training.run_dir.best_effort import best_effort
from training.tracking.events import Picture

SAMPLES = "samples"
"""The picture of restored samples, which every system draws."""
NOTE = """\
**Pictures by step** are at the end of *Model metrics*: move a card's slider, and open the card
to see them large. {pictures}

**Restarts** and their reasons are in `starts.jsonl` among the artifacts, stacks of a hung worker
in `stacks`.
"""
"""The note at the top of a stage's page; `pictures` says what its pictures show."""


def write_pictures(folder: Path, step: int, images: Mapping[str, Image.Image]) -> list[Picture]:
    """Writes the pictures of a step; those that cannot be written are skipped."""
    written = []
    with best_effort(f"pictures in {folder}"):
        for key, image in images.items():
            name = f"step-{step:06d}.png" if key == SAMPLES else f"{key}-{step:06d}.png"
            path = str(folder / name)
            with storage.open_atomic(path) as file:
                image.save(file, format="PNG")
            written.append(Picture(key=key, step=step, path=path))
    return written


def image_grid(columns: Sequence[Tensor]) -> Image.Image:
    """Batches of images (B, 3, H, W) in [-1, 1] as one picture: a row for each sample."""
    rows = torch.cat([to_pixels(images) for images in columns], dim=3)
    return Image.fromarray(np.concatenate(list(rows.permute(0, 2, 3, 1).cpu().numpy()), axis=0))


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] (B, 3, H, W) -> uint8, clamped and rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
