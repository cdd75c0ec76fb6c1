"""Takes the part of an LQ that shows what a crop of its HQ shows, at the final size of the crop."""

from __future__ import annotations

import cv2
import numpy as np

from datagen.dataset.records import Crop, Registration

_MARGIN = 3  # pixels that the cubic kernel reaches


def lq_of_crop(
    lq: np.ndarray,
    found: Registration,
    *,
    hq_size: tuple[int, int],
    crop: Crop,
    size: tuple[int, int],
) -> np.ndarray:
    """float32 (H, W, 3) in [0, 1] of an LQ, uint8, whose HQ has `hq_size`; sizes are (width,
    height). What the LQ does not cover repeats its border."""
    lq_size = np.array(lq.shape[1::-1])
    step = np.array([crop.width, crop.height]) / size / found.scale
    shift = np.array([found.shift_x, found.shift_y])
    start = (np.array([crop.left, crop.top]) - np.array(hq_size) / 2 - shift) / found.scale
    start += lq_size / 2
    if step.max() > 1:  # else details finer than the new pixels would alias
        reduced = np.rint(lq_size / np.maximum(step, 1)).astype(int)
        lq = cv2.resize(lq, [int(side) for side in reduced], interpolation=cv2.INTER_AREA)
        start, step = start * reduced / lq_size, step * reduced / lq_size
        lq_size = reduced
    first = np.clip(np.floor(start) - _MARGIN, 0, lq_size - 1).astype(int)
    last = np.clip(np.ceil(start + step * size) + _MARGIN, first + 1, lq_size).astype(int)
    cut = lq[first[1] : last[1], first[0] : last[0]].astype(np.float32) / np.float32(255)
    # OpenCV counts from the center of the first pixel.
    origin = start - first + step / 2 - 0.5
    matrix = np.array([[step[0], 0, origin[0]], [0, step[1], origin[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(cut, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(warped, 0, 1)
