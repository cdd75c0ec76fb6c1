"""A small picture that is written in all formats."""

from __future__ import annotations

import cv2
import numpy as np
import pytest


@pytest.fixture
def colors() -> np.ndarray:
    """uint8 (24, 36, 3), smooth and not saturated."""
    coarse = np.random.default_rng(0).integers(90, 170, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (36, 24), interpolation=cv2.INTER_LINEAR)
