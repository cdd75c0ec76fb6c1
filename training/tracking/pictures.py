"""Pictures of a stage while it trains: decoded samples side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SAMPLES = "samples"
"""The picture of restored samples, which every system draws."""
NOTE = """\
**Pictures by step** are at the end of *Model metrics*: move a card's slider, and open the card
to see them large. {pictures}

**Restarts** and their reasons are in `starts.jsonl` among the artifacts, stacks of a hung worker
in `stacks`.
"""
"""The note at the top of a stage's page; `pictures` says what its pictures show."""


def image_grid(columns: Sequence[Tensor]) -> Image.Image:
    """Batches of images (B, 3, H, W) in [-1, 1] as one picture: a row for each sample."""
    rows = torch.cat([to_pixels(images) for images in columns], dim=3)
    return Image.fromarray(np.concatenate(list(rows.permute(0, 2, 3, 1).cpu().numpy()), axis=0))


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] (B, 3, H, W) -> uint8, clamped and rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
