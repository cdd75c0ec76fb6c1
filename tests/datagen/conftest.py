"""Generated pictures, and small recipes for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datagen.settings import BucketSettings, DatasetRecipe, PixelBudget

PhotoMaker = Callable[..., np.ndarray]
RecipeMaker = Callable[..., DatasetRecipe]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _photo(seed: int, *, width: int = 96, height: int = 80) -> np.ndarray:
    """Smooth shapes, edges and texture, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float64)
    y, x = np.mgrid[:height, :width]
    edge = ((x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) > 0)[..., None] * rng.uniform(20, 60)
    texture = rng.normal(0, 6, (height, width, 1))
    return np.clip(smooth * 0.8 + edge + texture, 0, 255).astype(np.uint8)


def _encoded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG" if suffix == ".jpg" else suffix[1:])
    return stream.getvalue()


@pytest.fixture
def photo() -> PhotoMaker:
    return _photo


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    return _encoded


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of nine photos in three shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, (width, height) in enumerate([(96, 80), (80, 96), (128, 70)] * 3):
        (folder / f"p{seed}.png").write_bytes(_encoded(_photo(seed, width=width, height=height)))
    return folder


@pytest.fixture
def recipe(photos: Path, tmp_path: Path) -> RecipeMaker:
    """A recipe of 64-pixel buckets over `photos`; keywords replace its fields."""

    def make(**changes: object) -> DatasetRecipe:
        fields: dict[str, object] = {
            "sources": (str(photos),),
            "output": str(tmp_path / "dataset"),
            "buckets": BucketSettings(budgets=(PixelBudget(side=64),), step=16),
            "samples_per_shard": 2,
            "samples_per_photo": 2,
            "validation_fraction": 0.3,
            "seed": 7,
        }
        return DatasetRecipe.model_validate({**fields, **changes})

    return make
