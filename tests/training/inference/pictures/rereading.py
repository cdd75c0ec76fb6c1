"""Pictures written and read again, and what they lose by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.inference.pictures.decode import Picture, read_picture
from training.inference.pictures.encode import encode

FORMATS = ("PNG", "JPEG", "TIFF", "WebP", "AVIF")


def reread(picture: Picture, format: str, **options: Any) -> tuple[Picture, list[str]]:
    """Written in a format and read again; what the writer told that it could not keep."""
    data, notes = encode(picture, format, **options)
    return read_picture(data), notes


def loss(first: np.ndarray, second: np.ndarray) -> int:
    """The largest difference of two levels."""
    return int(np.abs(first.astype(int) - second).max())
