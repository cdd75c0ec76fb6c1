"""A recipe with `sharpen` stores the sharpened HQ, and makes LQ and latents of that."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.dataset.records import DrawnSample
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample
from datagen.degradation.apply import degrade_small
from datagen.degradation.kernels import sharpened
from datagen.review.recompute import recompute_samples
from datagen.settings import DatasetRecipe


def _samples(recipe: DatasetRecipe) -> list[ShardSample]:
    shards = load_manifest(recipe.output).shards
    return [sample for one in shards for sample in read_shard(f"{recipe.output}/{one.path}")]


def _pixels(encoded: bytes | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded or b"")))


def test_the_target_is_sharpened_and_so_is_what_is_degraded(
    recipe: Callable[..., DatasetRecipe], tmp_path: Path
) -> None:
    stored = {"latents": (), "hq_pixels": "png", "lq_pixels": "small"}
    plain = recipe(output=str(tmp_path / "plain"), **stored)
    sharp = recipe(output=str(tmp_path / "sharp"), sharpen={"strength": 1.5}, **stored)
    build_in_process(plain)
    build_in_process(sharp)
    for one, other in zip(_samples(plain), _samples(sharp), strict=True):
        assert one.meta == other.meta
        levels = _pixels(one.hq_image).astype(np.float32)
        expected = sharpened(levels, strength=1.5, kernel_size=51, threshold=10)
        hq = _pixels(other.hq_image)
        assert np.array_equal(hq, np.rint(expected)) and not np.array_equal(hq, levels)
        drawn = DrawnSample.model_validate_json(other.meta)
        assert np.array_equal(_pixels(other.lq_image), degrade_small(hq, drawn.lq))
    assert recompute_samples(sharp.output) == ([], [])
