"""NIQE against BasicSR's, whose values on these pictures were computed by its own code."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage import data

from training.evaluation.metrics.luma import luma
from training.evaluation.metrics.metric import NotMeasurable
from training.evaluation.metrics.niqe import niqe


def _blurred(photo: np.ndarray) -> np.ndarray:
    height, width = photo.shape[:2]
    small = Image.fromarray(photo).resize((width // 4, height // 4), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _noisy(photo: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 25, photo.shape)
    return (photo + noise).clip(0, 255).astype(np.uint8)


def test_it_is_that_of_basicsr() -> None:
    # `niqe` and `calculate_niqe` of basicsr-fixed 1.4.2. The second convolves in float32, which
    # moves the value, most where a picture has flat places.
    chelsea, coffee = data.chelsea(), data.coffee()
    pictures = (chelsea, _blurred(chelsea), _noisy(chelsea), coffee, _blurred(coffee))
    found = [niqe(luma(picture, "ycbcr")) for picture in pictures]
    in_float64 = [2.6255243, 8.3837263, 10.6472857, 4.1153267, 7.5603859]
    assert found == pytest.approx(in_float64, abs=4e-3)
    assert found[0] == pytest.approx(in_float64[0], abs=1e-5)
    as_published = [2.6255244, 8.3828481, 10.6473083, 4.1152416, 7.5579156]
    assert found == pytest.approx(as_published, abs=4e-3)


def test_a_block_more_or_less_at_the_edge_does_not_count() -> None:
    y = luma(data.chelsea(), "ycbcr")
    assert niqe(y) == niqe(y[: 3 * 96, : 4 * 96])


def test_pictures_without_a_value_say_why() -> None:
    y = luma(data.chelsea(), "ycbcr")
    with pytest.raises(NotMeasurable, match="100x180 holds fewer than two of its blocks of 96"):
        niqe(y[:180, :100])
    assert niqe(y[:100, :200]) > 0
    with pytest.raises(NotMeasurable, match="not flat"):
        niqe(np.full((300, 300), 128.0))
