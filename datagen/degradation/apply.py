"""Applies drawn parameters to an HQ image: `degrade` gives its LQ at HQ size, `degrade_small` at
its own.

No randomness is left: equal pixels and parameters give equal bytes with any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from datagen.degradation.kernels import Filter
from datagen.degradation.noise import clipped, gaussian_noise, kept_pixels, poisson_noise, rounded
from datagen.degradation.parameters import (
    BlurParams,
    DegradationParams,
    DownscaleParams,
    GaussianNoiseParams,
    JpegParams,
    MaskParams,
    OperationParams,
    PoissonNoiseParams,
    ResizeBackParams,
    ResizeParams,
    SincParams,
    SkippedOperation,
)
from datagen.degradation.resample import Size, blurred_and_resized, resized, resized_and_blurred


def degrade(hq: np.ndarray, drawn: DegradationParams) -> np.ndarray:
    """The LQ at HQ size: float32 (H, W, 3) in [0, 1], registered with `hq`.

    `hq` is uint8, or float in [0, 1], of shape (H, W, 3).
    """
    # Split at the resize back, the last resize: the chain before it makes the small 8-bit image
    # that a user has, the chain after it is linear (a blur or nothing) in nearly every recipe.
    # Then dividing by 255 may come first, on the small image, where it costs scale^2 times less.
    small = degrade_small(hq, drawn).astype(np.float32)
    rest = drawn.operations[_resize_back_index(drawn) :]
    size = hq.shape[1], hq.shape[0]
    if all(_is_linear(operation) for operation in rest):
        small *= np.float32(1 / 255)
        lq = apply_operations(small, rest, scale=drawn.scale, size=size)
    else:
        lq = apply_operations(small, rest, scale=drawn.scale, size=size) * np.float32(1 / 255)
    return np.clip(lq, 0, 1, out=lq)


def degrade_small(hq: np.ndarray, drawn: DegradationParams) -> np.ndarray:
    """The LQ at its own size, uint8 (round(H / scale), round(W / scale), 3): what a user has.

    Applies the chain up to, not including, the resize back.
    """
    levels = hq.astype(np.float32) if hq.dtype == np.uint8 else hq * np.float32(255)
    levels = levels.astype(np.float32, copy=False)
    before = drawn.operations[: _resize_back_index(drawn)]
    size = hq.shape[1], hq.shape[0]
    return rounded(apply_operations(levels, before, scale=drawn.scale, size=size))


def _resize_back_index(drawn: DegradationParams) -> int:
    """The number of operations where there is none, as in tests of single operations."""
    back = (i for i, item in enumerate(drawn.operations) if isinstance(item, ResizeBackParams))
    return next(back, len(drawn.operations))


def _is_linear(operation: OperationParams) -> bool:
    """Whether the operation may be applied to pixels in any unit."""
    return not isinstance(
        operation, GaussianNoiseParams | PoissonNoiseParams | MaskParams | JpegParams
    )


def apply_operations(
    pixels: np.ndarray, operations: Sequence[OperationParams], *, scale: float, size: Size
) -> np.ndarray:
    """float32 (H, W, 3) in 8-bit levels (any unit if all `operations` are linear), degraded.

    A blur and a resize side by side are applied together. `scale` is the sample's and `size` the
    HQ's (width, height).
    """
    steps = [operation for operation in operations if not isinstance(operation, SkippedOperation)]
    while steps:
        match steps:
            case [
                BlurParams() | SincParams() as blur,
                ResizeParams() | DownscaleParams() | ResizeBackParams() as resize,
                *steps,
            ]:
                kernel, target = Filter.of(blur.kernel()), _target(resize, scale, size)
                pixels = blurred_and_resized(pixels, kernel, target, resize.mode)
            case [
                ResizeParams() | DownscaleParams() | ResizeBackParams() as resize,
                BlurParams() | SincParams() as blur,
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
    resize: ResizeParams | DownscaleParams | ResizeBackParams, scale: float, size: Size
) -> Size:
    match resize:
        case DownscaleParams():
            return small_size(size, scale)
        case ResizeBackParams():
            return size
        case ResizeParams(relative_to="hq"):
            return small_size(size, 1 / resize.factor)
        case ResizeParams():
            return small_size(size, scale / resize.factor)


def _apply(
    operation: OperationParams, pixels: np.ndarray, *, scale: float, size: Size
) -> np.ndarray:
    match operation:
        case SkippedOperation():
            return pixels
        case BlurParams() | SincParams():
            return Filter.of(operation.kernel()).apply(pixels)
        case ResizeParams() | DownscaleParams() | ResizeBackParams():
            return resized(pixels, _target(operation, scale, size), operation.mode)
        case GaussianNoiseParams(sigma=sigma, gray=gray, seed=seed):
            noise = gaussian_noise(pixels.shape, sigma=sigma, gray=gray, seed=seed)
            return clipped(cv2.add(pixels, noise))
        case PoissonNoiseParams(scale=strength, gray=gray, seed=seed):
            noise = poisson_noise(pixels, scale=strength, gray=gray, seed=seed)
            return clipped(cv2.add(pixels, noise))
        case MaskParams(fraction=fraction, seed=seed):
            return pixels * kept_pixels(pixels.shape[:2], lost=fraction, seed=seed)
        case JpegParams():
            return _jpeg(rounded(pixels), operation.quality)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """A real JPEG (libjpeg, 4:2:0), there and back."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None, "a JPEG just written can be read"
    return decoded.astype(np.float32)
