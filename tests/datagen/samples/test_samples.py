"""A sample is decided by the recipe seed and the photo's bytes, and by nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from datagen.dataset.records import DrawnSample
from datagen.degradation.apply import degrade
from datagen.samples.sample import Photo, draw_sample, make_pixels, sample_key, split_of
from datagen.settings import Augmentation, DatasetRecipe

RecipeMaker = Callable[..., DatasetRecipe]


def _hash(index: int) -> str:
    return hashlib.sha256(bytes([index % 256, index // 256])).hexdigest()


def _source(width: int = 96, height: int = 80, *, sha256: str = "ab" * 32) -> Photo:
    return Photo("x.png", sha256, np.zeros((height, width, 3), np.uint8))


def test_a_key_is_the_digest_and_the_variant() -> None:
    assert sample_key("0123456789abcdef0123456789", 4) == "0123456789abcdef0123-04"


def test_a_renamed_photo_gives_the_same_sample(recipe: RecipeMaker) -> None:
    one = draw_sample(recipe(), _source(), 0)
    renamed = draw_sample(recipe(), replace(_source(), uri="elsewhere.png"), 0)
    assert renamed == one.model_copy(update={"source": "elsewhere.png"})


def test_seed_photo_and_variant_each_change_the_sample(recipe: RecipeMaker) -> None:
    one = draw_sample(recipe(), _source(), 0)
    others = [
        draw_sample(recipe(seed=8), _source(), 0),
        draw_sample(recipe(), _source(sha256="cd" * 32), 0),
        draw_sample(recipe(), _source(), 1),
    ]
    assert len({one.scale, *(other.scale for other in others)}) == 4


def test_negative_scale_is_between_one_and_that_of_the_lq(recipe: RecipeMaker) -> None:
    drawn = [draw_sample(recipe(), _source(sha256=_hash(i)), 0) for i in range(300)]
    assert all(1 <= sample.neg.scale <= sample.scale == sample.lq.scale for sample in drawn)
    shares = [(sample.neg.scale - 1) / (sample.scale - 1) for sample in drawn]
    assert 0.44 < np.mean(shares) < 0.56


@pytest.mark.parametrize("crop", ["cover", "native", "random"])
def test_crops_lie_in_the_photo_and_have_the_shape_of_the_bucket(
    recipe: RecipeMaker, crop: str
) -> None:
    for index in range(100):
        drawn = draw_sample(recipe(crop=crop), _source(500, 300, sha256=_hash(index)), 0)
        height, width = (int(side) for side in drawn.bucket.split("x"))
        box = drawn.crop
        assert 0 <= box.left <= 500 - box.width and 0 <= box.top <= 300 - box.height
        assert abs(box.width / box.height - width / height) < 0.02
        if crop == "native":
            assert (box.width, box.height) == (width, height)
        if crop == "cover":
            assert box.width == 500 or box.height == 300


def test_pixels_are_the_crop_turned_and_degraded(
    recipe: RecipeMaker, photo: Callable[..., np.ndarray]
) -> None:
    augmentation = Augmentation(flip_probability=0.5, rotate90_probability=0.6)
    pixels = photo(3, width=130, height=75)
    turns = set()
    for index in range(20):
        drawn = draw_sample(
            recipe(augmentation=augmentation), _source(130, 75, sha256=_hash(index)), 0
        )
        made = make_pixels(pixels, drawn)
        height, width = (int(side) for side in drawn.bucket.split("x"))
        assert made.hq.shape == made.lq.shape == made.neg.shape == (height, width, 3)
        box, turn = drawn.crop, drawn.orientation.quarter_turns
        cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        size = (height, width) if turn % 2 else (width, height)
        expected = np.rot90(cv2.resize(cut, size, interpolation=cv2.INTER_AREA), turn)
        expected = expected[:, ::-1] if drawn.orientation.flip else expected
        assert np.array_equal(made.hq, expected)
        assert np.array_equal(made.lq, degrade(made.hq, drawn.lq))
        turns.add((turn, drawn.orientation.flip))
    assert len(turns) >= 6


def test_meta_json_rebuilds_the_sample(
    recipe: RecipeMaker, photo: Callable[..., np.ndarray]
) -> None:
    drawn = draw_sample(recipe(), _source(), 1)
    again = DrawnSample.model_validate(json.loads(drawn.model_dump_json()))
    pixels = photo(0)
    one, two = make_pixels(pixels, drawn), make_pixels(pixels, again)
    assert np.array_equal(one.lq, two.lq) and np.array_equal(one.neg, two.neg)


def test_split_is_by_photo_with_the_asked_share() -> None:
    splits = [split_of(_hash(i), 0.2) for i in range(2000)]
    assert 0.17 < splits.count("validation") / 2000 < 0.23
    assert {split_of(_hash(i), 0) for i in range(50)} == {"train"}
    assert {split_of(_hash(i), 1) for i in range(50)} == {"validation"}
