"""Colors of pixels that are not seen."""

from __future__ import annotations

import numpy as np

from tests.training.inference.pictures.rereading import loss
from training.inference.pictures.pixels import colors_everywhere


def test_colors_grow_from_what_is_seen(colors: np.ndarray) -> None:
    alpha = np.zeros(colors.shape[:2], np.uint8)
    assert not colors_everywhere(colors, alpha).any()
    alpha[5, 7] = 1
    grown = colors_everywhere(colors, alpha)
    assert loss(grown, np.broadcast_to(colors[5, 7], colors.shape)) <= 1
    assert colors_everywhere(colors, alpha + 1) is colors
