"""Applies drawn operations to pixels, in order; a blur and a resize side by side at once.

Nothing is left to chance: the same pixels and records give the same bytes on any threads.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from datagen.degradation.kernels import Filter
from datagen.degradation.noise import clipped, gaussian_noise, kept_pixels, poisson_noise, rounded
from datagen.degradation.parameters import (
    DrawnBlur,
    DrawnDownscale,
    DrawnGaussianNoise,
    DrawnJpeg,
    DrawnMask,
    DrawnOperation,
    DrawnPoissonNoise,
    DrawnResize,
    DrawnResizeBack,
    DrawnSinc,
    Skipped,
)
from datagen.degradation.resample import Size, blurred_and_resized, resized, resized_and_blurred


def is_linear(operation: DrawnOperation) -> bool:
    """Whether the operation may be applied to pixels in any unit."""
    return not isinstance(operation, DrawnGaussianNoise | DrawnPoissonNoise | DrawnMask | DrawnJpeg)


def run(
    pixels: np.ndarray, operations: Iterable[DrawnOperation], *, scale: float, size: Size
) -> np.ndarray:
    """float32 (H, W, 3) in 8-bit levels (any unit if all `operations` are linear), degraded.

    `scale` is the sample's and `size` the HQ's (width, height).
    """
    steps = [operation for operation in operations if not isinstance(operation, Skipped)]
    while steps:
        match steps:
            case [
                DrawnBlur() | DrawnSinc() as blur,
                DrawnResize() | DrawnDownscale() | DrawnResizeBack() as resize,
                *steps,
            ]:
                kernel, target = Filter.of(blur.kernel()), _target(resize, scale, size)
                pixels = blurred_and_resized(pixels, kernel, target, resize.mode)
            case [
                DrawnResize() | DrawnDownscale() | DrawnResizeBack() as resize,
                DrawnBlur() | DrawnSinc() as blur,
                *steps,
            ]:
                kernel, target = Filter.of(blur.kernel()), _target(resize, scale, size)
                pixels = resized_and_blurred(pixels, target, resize.mode, kernel)
            case [step, *steps]:
                pixels = _apply(step, pixels, scale=scale, size=size)
    return pixels


def small_size(size: Size, scale: float) -> Size:
    """`size` over `scale`, each side rounded once and at least 1 pixel."""
    first, second = size
    return max(1, round(first / scale)), max(1, round(second / scale))


def _target(
    resize: DrawnResize | DrawnDownscale | DrawnResizeBack, scale: float, size: Size
) -> Size:
    match resize:
        case DrawnDownscale():
            return small_size(size, scale)
        case DrawnResizeBack():
            return size
        case DrawnResize(relative_to="hq"):
            return small_size(size, 1 / resize.factor)
        case DrawnResize():
            return small_size(size, scale / resize.factor)


def _apply(
    operation: DrawnOperation, pixels: np.ndarray, *, scale: float, size: Size
) -> np.ndarray:
    match operation:
        case Skipped():
            return pixels
        case DrawnBlur() | DrawnSinc():
            return Filter.of(operation.kernel()).apply(pixels)
        case DrawnResize() | DrawnDownscale() | DrawnResizeBack():
            return resized(pixels, _target(operation, scale, size), operation.mode)
        case DrawnGaussianNoise(sigma=sigma, gray=gray, seed=seed):
            noise = gaussian_noise(pixels.shape, sigma=sigma, gray=gray, seed=seed)
            return clipped(cv2.add(pixels, noise))
        case DrawnPoissonNoise(scale=strength, gray=gray, seed=seed):
            noise = poisson_noise(pixels, scale=strength, gray=gray, seed=seed)
            return clipped(cv2.add(pixels, noise))
        case DrawnMask(fraction=fraction, seed=seed):
            return pixels * kept_pixels(pixels.shape[:2], lost=fraction, seed=seed)
        case DrawnJpeg():
            return _jpeg(rounded(pixels), operation.quality)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """A real JPEG (libjpeg, 4:2:0), there and back."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None, "a JPEG just written can be read"
    return decoded.astype(np.float32)
