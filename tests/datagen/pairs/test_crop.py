"""The LQ of a crop shows what the crop shows, in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from datagen.dataset.records import Crop, Registration
from datagen.pairs.crop import lq_of_crop
from tests.support.pair_pictures import scene_picture


@pytest.mark.parametrize(
    ("lq_size", "scale", "size", "lens"),
    [
        pytest.param((160, 120), 4.02, (256, 192), 2.01, id="enlarged"),
        pytest.param((320, 240), 2.0, (128, 96), 1.0, id="at its own size"),
        pytest.param((640, 480), 1.0, (64, 48), 2.0, id="reduced"),
    ],
)
def test_lq_shows_what_the_crop_shows(
    lq_size: tuple[int, int], scale: float, size: tuple[int, int], lens: float
) -> None:
    crop = Crop(left=150, top=170, width=256, height=192)
    lq = scene_picture(*lq_size, scale=scale, shift=(3.3, -2.6), lens=lens)
    found = Registration(scale=scale, shift_x=3.3, shift_y=-2.6, offset=0.0, similarity=1.0)
    made = lq_of_crop(lq, found, hq_size=(640, 480), crop=crop, size=size)
    center = (150 + 128 - 320.0, 170 + 96 - 240.0)
    pixel = 256 / size[0]
    # A pixel made of several adds the blur of its own area.
    lens = np.hypot(lens, pixel / np.sqrt(12)) if pixel > scale else lens
    expected = scene_picture(*size, scale=pixel, shift=center, lens=lens)
    wrong = scene_picture(*size, scale=pixel, shift=(center[0] + 0.5, center[1]), lens=lens)
    error = np.abs(made * 255 - expected).mean()
    assert error < 0.7
    assert error < np.abs(wrong.astype(float) - expected).mean()


def test_beyond_the_border_of_the_lq_its_border_is_repeated() -> None:
    lq = np.full((30, 40, 3), 51, np.uint8)
    found = Registration(scale=4.0, shift_x=40.0, shift_y=-40.0, offset=56.6, similarity=1.0)
    crop = Crop(left=0, top=0, width=160, height=120)
    made = lq_of_crop(lq, found, hq_size=(160, 120), crop=crop, size=(160, 120))
    assert made.shape == (120, 160, 3)
    assert made == pytest.approx(0.2)
