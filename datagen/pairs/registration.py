"""Finds how the LQ of a real pair lies on its HQ, by phase correlation: the shift and the scale.

Positions are continuous, pixel i covers [i, i + 1]; both pictures are laid center on center first.
"""

from __future__ import annotations

import math
from itertools import product

import cv2
import numpy as np
from skimage.registration import phase_cross_correlation

from datagen.dataset.records import Registration

LEAST_SIMILARITY = 0.2
"""In 40 photos with noise and JPEG, pairs had 0.82 or more, different scenes 0.04 or less."""
_LARGEST_WINDOW = 512
_SMALLEST_WINDOW = 16
_STEPS = 100  # in which a shift of a pixel is found
_BROAD = 3.0  # standard deviation, LQ pixels
_ROUNDS = 6  # at most; the second has found nearly everything


DIFFERENT, OFF = "pair of different pictures", "pair off by too much"
"""Reasons of pairs that are left out; a number in brackets follows."""


def fault(found: Registration, *, largest_offset: float) -> str | None:
    """Why the pair cannot be used, with the number; None if it can."""
    if found.similarity < LEAST_SIMILARITY:
        return f"{DIFFERENT} (similarity {found.similarity:.2f})"
    if found.offset > largest_offset:
        return f"{OFF} ({found.offset:.1f} pixels)"
    return None


def size_fault(*, hq: tuple[int, int], lq: tuple[int, int]) -> str | None:
    """Why pictures of these sizes (width, height) are no pair; None if they may be one.

    A side of the LQ may be one pixel off what the scale of the other side gives: it was rounded.
    """
    (width, height), (lq_width, lq_height) = hq, lq
    sizes = f"{width}x{height} and {lq_width}x{lq_height}"
    if lq_width > width or lq_height > height:
        return f"LQ larger than its HQ ({sizes})"
    by_height, by_width = width * lq_height / height, height * lq_width / width
    if abs(by_height - lq_width) > 1 and abs(by_width - lq_height) > 1:
        return f"sides of the pair differ beyond the scale ({sizes})"
    return None


def register(hq: np.ndarray, lq: np.ndarray) -> Registration:
    """Registers two pictures, uint8 (H, W, 3), whose sizes have no fault.

    The HQ is reduced to the LQ's grid, where both have the same detail. The residual shifts of nine
    windows give shift and scale; an LQ of fewer than 32 pixels a side keeps the scale of the sizes.
    """
    height, width = lq.shape[:2]
    nominal = math.sqrt(hq.shape[0] / height * (hq.shape[1] / width))
    target = _luma(lq)
    # Equal to the LQ's size, or a pixel off it where that was rounded.
    reduced = (round(hq.shape[1] / nominal), round(hq.shape[0] / nominal))
    source = cv2.resize(_luma(hq), reduced, interpolation=cv2.INTER_AREA)
    nominal = math.sqrt(hq.shape[1] / reduced[0] * (hq.shape[0] / reduced[1]))
    zoom, shift = 1.0, np.zeros(2)
    for _ in range(_ROUNDS):
        zoom_change, change = _residual(_warped(source, target, zoom, shift), target)
        shift = shift + zoom * change
        zoom *= zoom_change
        if abs(zoom_change - 1) * max(width, height) + np.abs(change).max() < 1 / _STEPS:
            break
    similarity = _similarity(_warped(source, target, zoom, shift), target)
    corner = np.array([width, height]) / 2
    offset = nominal * math.hypot(*(np.abs(zoom - 1) * corner + np.abs(shift)))
    shift_x, shift_y = nominal * shift
    # Rounded far below what can be found, so that another processor has the same numbers.
    return Registration(
        scale=round(float(nominal * zoom), 6),
        shift_x=round(float(shift_x), 3),
        shift_y=round(float(shift_y), 3),
        offset=round(offset, 3),
        similarity=round(similarity, 3),
    )


def _luma(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _warped(source: np.ndarray, target: np.ndarray, zoom: float, shift: np.ndarray) -> np.ndarray:
    """The source on the target's grid: point p of it, from the center, is `zoom * p + shift`."""
    (rows, columns), (height, width) = source.shape, target.shape
    # OpenCV counts from the center of the first pixel.
    start = (np.array([columns, rows]) - 1) / 2 + shift - zoom * (np.array([width, height]) - 1) / 2
    matrix = np.array([[zoom, 0, start[0]], [0, zoom, start[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        source, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


def _residual(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Zoom and shift that are left between two pictures of one size, from nine windows of it.

    Windows count by the height of their peak: those without detail, as of a sky, have none.
    """
    source, target = _detail(source), _detail(target)
    size = np.array(target.shape[::-1])
    window = np.minimum(size // 2 if size.min() >= 2 * _SMALLEST_WINDOW else size, _LARGEST_WINDOW)
    hanning = cv2.createHanningWindow([int(side) for side in window], cv2.CV_32F)
    centers, shifts, weights = [], [], []
    for part in product((0.0, 0.5, 1.0), repeat=2):
        left, top = np.floor((size - window) * part).astype(int)
        cut = np.s_[top : top + window[1], left : left + window[0]]
        # In 32 bits a peak is so flat that the order of additions, another for each number of
        # threads, would decide between two steps.
        one, other = ((side[cut] * hanning).astype(np.float64) for side in (source, target))
        if not (one.any() and other.any()):
            continue
        # Not normalized: where noise is all there is of a frequency it must not count as much.
        (down, right), error, _ = phase_cross_correlation(
            one, other, upsample_factor=_STEPS, normalization=None
        )
        centers.append(np.array([left, top]) + window / 2 - size / 2)
        shifts.append((right, down))
        weights.append((1 - min(error, 1.0) ** 2) ** 2)
    if not sum(weights) > 0:
        return 1.0, np.zeros(2)
    at, shift, weight = np.array(centers), np.array(shifts), np.array(weights)[:, None]
    middle, mean = (weight * at).sum(0) / weight.sum(), (weight * shift).sum(0) / weight.sum()
    spread = (weight * (at - middle) ** 2).sum()
    slope = (weight * (at - middle) * (shift - mean)).sum() / spread if spread > 0 else 0.0
    return 1.0 + slope, mean - slope * middle


def _detail(luma: np.ndarray) -> np.ndarray:
    """Without what is broad, whose peak would be broad too."""
    return luma - cv2.GaussianBlur(luma, (0, 0), _BROAD)


def _similarity(source: np.ndarray, target: np.ndarray) -> float:
    a, b = _detail(source), _detail(target)
    power = math.sqrt(float(np.square(a).mean()) * float(np.square(b).mean()))
    # Below a hundredth of a squared level there is no detail, only what rounding has left.
    return float((a * b).mean()) / power if power > 0.01 else 0.0
