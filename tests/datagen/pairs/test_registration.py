"""Registration finds the shift and scale that synthetic pairs were made with, in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from datagen.pairs.registration import fault, register, size_fault
from tests.support.pair_pictures import scene_picture


@pytest.mark.parametrize(
    ("size", "scale", "shift"),
    [
        ((160, 120), 4.0, (0.0, 0.0)),
        ((160, 120), 4.0, (2.3, -1.7)),
        ((160, 120), 4.0, (-13.0, 9.25)),
        ((160, 120), 4.02, (1.1, 0.6)),
        ((320, 240), 2.0, (0.45, -3.2)),
        ((640, 480), 1.0, (0.4, 5.5)),
        ((640, 480), 0.996, (-1.3, 0.2)),
        ((213, 160), 3.0, (1.5, -0.8)),
    ],
)
def test_shift_and_scale_are_found(
    size: tuple[int, int], scale: float, shift: tuple[float, float]
) -> None:
    hq = scene_picture(640, 480, scale=1.0, shift=(0, 0))
    found = register(hq, scene_picture(*size, scale=scale, shift=shift))
    assert (found.shift_x, found.shift_y) == pytest.approx(shift, abs=0.1)
    assert found.scale == pytest.approx(scale, rel=5e-4)
    assert found.similarity > 0.95


def test_a_pair_off_by_more_than_the_tolerance_is_rejected_with_the_number() -> None:
    hq = scene_picture(640, 480, scale=1.0, shift=(0, 0))
    found = register(hq, scene_picture(160, 120, scale=4.0, shift=(6.0, -8.0)))
    assert fault(found, largest_offset=9.0) == "pair off by too much (10.0 pixels)"
    assert fault(found, largest_offset=11.0) is None


def test_pictures_of_different_scenes_are_rejected_whatever_shift_is_found() -> None:
    hq = scene_picture(640, 480, scale=1.0, shift=(0, 0))
    found = register(hq, scene_picture(160, 120, scale=4.0, shift=(0, 0), seed=1))
    what = fault(found, largest_offset=1e9)
    assert what is not None and what.startswith("pair of different pictures (similarity ")


def test_a_pair_without_detail_is_rejected() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    what = fault(register(flat, flat[:16, :16]), largest_offset=1.0)
    assert what is not None and what.startswith("pair of different pictures")


@pytest.mark.parametrize(
    ("lq", "what"),
    [
        ((160, 120), None),
        ((161, 120), None),
        ((640, 480), None),
        ((160, 90), "sides of the pair differ beyond the scale (640x480 and 160x90)"),
        ((120, 160), "sides of the pair differ beyond the scale (640x480 and 120x160)"),
        ((641, 480), "LQ larger than its HQ (640x480 and 641x480)"),
    ],
)
def test_sizes_that_are_no_pair_are_named(lq: tuple[int, int], what: str | None) -> None:
    assert size_fault(hq=(640, 480), lq=lq) == what
