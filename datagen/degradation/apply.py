"""Applies drawn parameters to an HQ image: `degrade` gives its LQ at HQ size, `degrade_small` at
its own, which `enlarge` brings to HQ size.

No randomness is left: equal pixels and parameters give equal bytes with any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from datagen.degradation import parameters as params
from datagen.degradation.kernels import Filter, sharpened
from datagen.degradation.masks import kept_pixels, without_box
from datagen.degradation.noise import clipped, gaussian_noise, poisson_noise, rounded
from datagen.degradation.resample import Size, blurred_and_resized, resized, resized_and_blurred


def degrade(
    hq: np.ndarray, drawn: params.DegradationParams, *, out: np.ndarray | None = None
) -> np.ndarray:
    """The LQ at HQ size: float32 (H, W, 3) in [0, 1], registered with `hq`; in `out` if given.

    `hq` is uint8, or float in [0, 1], of shape (H, W, 3).
    """
    size = hq.shape[1], hq.shape[0]
    return enlarge(degrade_small(hq, drawn), drawn, size=size, out=out)


def enlarge(
    small: np.ndarray,
    drawn: params.DegradationParams,
    *,
    size: Size,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The LQ at HQ size (width, height), as `degrade` gives it, of what `degrade_small` gave.

    Applies the chain from the resize back on.
    """
    # The chain before the resize back, the last resize, makes the small 8-bit image that a user
    # has; the chain after it is linear (a blur or nothing) in nearly every recipe. Then dividing by
    # 255 may come first, on the small image, where it costs scale^2 times less.
    small = small.astype(np.float32)
    rest = drawn.operations[_resize_back_index(drawn) :]
    linear = params.AnyBlur | params.AnyResize | params.SkippedOperation
    if all(isinstance(operation, linear) for operation in rest):
        small *= np.float32(1 / 255)
        lq = apply_operations(small, rest, scale=drawn.scale, size=size)
    else:
        lq = apply_operations(small, rest, scale=drawn.scale, size=size) * np.float32(1 / 255)
    return np.clip(lq, 0, 1, out=lq if out is None else out)


def degrade_small(hq: np.ndarray, drawn: params.DegradationParams) -> np.ndarray:
    """The LQ at its own size, uint8 (round(H / scale), round(W / scale), 3): what a user has.

    Applies the chain up to, not including, the resize back.
    """
    levels = hq.astype(np.float32) if hq.dtype == np.uint8 else hq * np.float32(255)
    levels = levels.astype(np.float32, copy=False)
    before = drawn.operations[: _resize_back_index(drawn)]
    size = hq.shape[1], hq.shape[0]
    return rounded(apply_operations(levels, before, scale=drawn.scale, size=size))


def _resize_back_index(drawn: params.DegradationParams) -> int:
    """The number of operations where there is none, as in tests of single operations."""
    return [*(operation.kind for operation in drawn.operations), "resize_back"].index("resize_back")


def apply_operations(
    pixels: np.ndarray, operations: Sequence[params.OperationParams], *, scale: float, size: Size
) -> np.ndarray:
    """float32 (H, W, 3) in 8-bit levels (any unit if all `operations` are linear), degraded.

    A blur and a resize side by side are applied together. `scale` is the sample's and `size` the
    HQ's (width, height).
    """
    steps = [step for step in operations if not isinstance(step, params.SkippedOperation)]
    while steps:
        step, *rest = steps
        after = rest[0] if rest else None
        if isinstance(step, params.AnyBlur) and isinstance(after, params.AnyResize):
            kernel, target = Filter.of(step.kernel()), _target(after, scale, size)
            pixels = blurred_and_resized(pixels, kernel, target, after.mode)
            steps = rest[1:]
        elif isinstance(step, params.AnyResize) and isinstance(after, params.AnyBlur):
            kernel, target = Filter.of(after.kernel()), _target(step, scale, size)
            pixels = resized_and_blurred(pixels, target, step.mode, kernel)
            steps = rest[1:]
        else:
            pixels = _apply(step, pixels, scale=scale, size=size)
            steps = rest
    return pixels


def small_size(size: Size, scale: float) -> Size:
    """`size` over `scale`, each side rounded once and at least 1 pixel."""
    return max(1, round(size[0] / scale)), max(1, round(size[1] / scale))


def _target(resize: params.AnyResize, scale: float, size: Size) -> Size:
    match resize:
        case params.DownscaleParams():
            return small_size(size, scale)
        case params.ResizeBackParams():
            return size
        case params.ResizeParams(relative_to="hq"):
            return small_size(size, 1 / resize.factor)
        case params.ResizeParams():
            return small_size(size, scale / resize.factor)


def _apply(
    operation: params.OperationParams, pixels: np.ndarray, *, scale: float, size: Size
) -> np.ndarray:
    match operation:
        case params.SkippedOperation():
            return pixels
        case params.BlurParams() | params.SincParams():
            return Filter.of(operation.kernel()).apply(pixels)
        case params.ResizeParams() | params.DownscaleParams() | params.ResizeBackParams():
            return resized(pixels, _target(operation, scale, size), operation.mode)
        case params.GaussianNoiseParams(sigma=sigma, gray=gray, seed=seed):
            noise = gaussian_noise(pixels.shape, sigma=sigma, gray=gray, seed=seed)
            return clipped(cv2.add(pixels, noise))
        case params.PoissonNoiseParams(scale=strength, gray=gray, seed=seed):
            noise = poisson_noise(pixels, scale=strength, gray=gray, seed=seed)
            return clipped(cv2.add(pixels, noise))
        case params.MaskParams(fraction=fraction, seed=seed):
            return pixels * kept_pixels(pixels.shape[:2], lost=fraction, seed=seed)
        case params.BoxParams(side=side, x=x, y=y):
            return without_box(pixels, side=side, x=x, y=y)
        case params.GreyParams():
            return cv2.transform(pixels, np.full((3, 3), 1 / 3, np.float32))
        case params.UsmParams(strength=strength, kernel_size=width, threshold=threshold):
            return sharpened(pixels, strength=strength, kernel_size=width, threshold=threshold)
        case params.JpegParams():
            return _jpeg(rounded(pixels), operation.quality)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """A real JPEG (libjpeg, 4:2:0), there and back."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None, "a JPEG just written can be read"
    return decoded.astype(np.float32)
