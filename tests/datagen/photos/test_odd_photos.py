"""A folder of every odd kind of image file at once, with good photos among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datagen.build.in_process import build_in_process
from datagen.review.verify import verify_dataset
from datagen.settings import DatasetRecipe
from tests.support.picture_files import animation, png_bomb, saved, sixteen_bit_png, turned

GOOD = 18
"""Samples of the nine good photos, two each."""


@pytest.fixture
def odd(photos: Path, photo: Callable[..., np.ndarray]) -> Path:
    image = [Image.fromarray(photo(seed)) for seed in range(50, 60)]
    whole = saved(image[0], "JPEG")
    clear = np.dstack([photo(61), np.full((80, 96), 9, np.uint8)])
    files = {
        "animated.gif": animation(photo(62), "GIF"),
        "animated.png": animation(photo(63), "PNG"),
        "animated.webp": animation(photo(64), "WEBP"),
        "bomb.png": png_bomb(),
        "clear.png": saved(Image.fromarray(clear)),
        "cmyk.jpg": saved(image[1].convert("CMYK"), "JPEG", quality=95),
        "cut.jpg": whole[: len(whole) * 2 // 3],
        "deep.png": sixteen_bit_png(photo(65).astype(np.uint16) * 257),
        "empty.png": b"",
        "gray.png": saved(image[2].convert("L")),
        "letter.jpg": b"Dear friend",
        "one.png": saved(image[3].resize((1, 1))),
        "palette.png": saved(image[4].quantize(64)),
        "poor.jpg": saved(image[5], "JPEG", quality=20),
        "turned.jpg": turned(photo(66), 6, quality=95),
        "wide.png": saved(Image.fromarray(photo(67, width=400, height=64))),
    }
    for name, data in files.items():
        (photos / name).write_bytes(data)
    return photos


def _left_out(recipe: DatasetRecipe) -> dict[str, str]:
    lines = Path(recipe.output, "rejected.jsonl").read_text().splitlines()
    return {Path(json.loads(line)["uri"]).name: json.loads(line)["reason"] for line in lines}


ALWAYS = {
    "bomb.png": "too large",
    "cut.jpg": "truncated",
    "empty.png": "empty file",
    "letter.jpg": "not an image",
    "one.png": "too small",
}


def test_good_photos_are_kept(recipe: Callable[..., DatasetRecipe], odd: Path) -> None:
    asked = recipe(max_rejected_fraction=0.9, samples_per_shard=64)
    manifest = build_in_process(asked)
    animated = dict.fromkeys(("animated.gif", "animated.png", "animated.webp"), "animated")
    assert _left_out(asked) == {**ALWAYS, **animated, "clear.png": "transparent"}
    assert manifest.num_samples == GOOD + 2 * 7
    assert verify_dataset(asked.output) == []


def test_a_recipe_may_accept_more(recipe: Callable[..., DatasetRecipe], odd: Path) -> None:
    images: dict[str, Any] = {"transparent": "white", "animated": "first_frame"}
    asked = recipe(max_rejected_fraction=0.9, images=images)
    assert build_in_process(asked).num_samples == GOOD + 2 * 11
    assert _left_out(asked) == ALWAYS


def test_a_recipe_may_accept_less(recipe: Callable[..., DatasetRecipe], odd: Path) -> None:
    images = {"gray": "reject", "cmyk": "reject", "sixteen_bit": "reject"}
    filters = {"min_side": 2, "max_aspect_ratio": 3, "min_jpeg_quality": 50}
    asked = recipe(max_rejected_fraction=0.9, images=images, filters=filters)
    build_in_process(asked)
    found = _left_out(asked)
    assert {name: found[name] for name in ("cmyk.jpg", "deep.png", "gray.png", "poor.jpg")} == {
        "cmyk.jpg": "cmyk",
        "deep.png": "16 bit",
        "gray.png": "gray",
        "poor.jpg": "jpeg quality",
    }
    assert found["wide.png"] == "aspect ratio"
    assert len(found) == len(ALWAYS) + 4 + 5


def test_blurred_photos_are_left_out(
    recipe: Callable[..., DatasetRecipe], photos: Path, photo: Callable[..., np.ndarray]
) -> None:
    flat = np.full((80, 96, 3), 90, np.uint8)
    (photos / "flat.png").write_bytes(saved(Image.fromarray(flat)))
    asked = recipe(max_rejected_fraction=0.5, filters={"min_sharpness": 50})
    assert build_in_process(asked).num_samples == GOOD
    assert _left_out(asked) == {"flat.png": "blurred"}
