"""Turns an HQ image into its LQ by a chain of operations; every draw is a record to be stored.

Each operation of `settings.Operation` has a draw (generator -> record) and an apply (pixels and
record -> pixels, no randomness left). Chain: FlowMapSR, appendix B.1. Knows no files, no samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import takewhile
from typing import Annotated, Literal, TypeVar

import cv2
import numpy as np
from pydantic import Field

from datagen import kernels
from datagen.fields import Settings
from datagen.noise import gaussian_noise, poisson_noise
from datagen.operations import (
    Blur,
    DegradationSettings,
    Downscale,
    Interpolation,
    Jpeg,
    KernelShape,
    Noise,
    Operation,
    ResizeBack,
)

T = TypeVar("T")

_FLAGS: dict[Interpolation, int] = {
    "nearest": cv2.INTER_NEAREST_EXACT,  # plain INTER_NEAREST moves the picture by half a pixel
    "area": cv2.INTER_AREA,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}


class Skipped(Settings):
    """The operation's probability said no."""

    kind: Literal["skipped"] = "skipped"
    operation: Literal["blur", "noise"]


class DrawnBlur(Settings):
    kind: Literal["blur"] = "blur"
    shape: KernelShape
    size: int
    sigma_x: float
    sigma_y: float
    theta: float
    beta: float
    """1 for the plain Gaussian shapes."""

    def kernel(self) -> np.ndarray:
        """The kernel, float64 (size, size), sum 1."""
        form = {"sigma_x": self.sigma_x, "sigma_y": self.sigma_y, "theta": self.theta}
        if self.shape.startswith("generalized"):
            return kernels.generalized_kernel(self.size, beta=self.beta, **form)
        if self.shape.startswith("plateau"):
            return kernels.plateau_kernel(self.size, beta=self.beta, **form)
        return kernels.gaussian_kernel(self.size, **form)


class DrawnSinc(Settings):
    kind: Literal["sinc"] = "sinc"
    size: int
    omega: float

    def kernel(self) -> np.ndarray:
        """The kernel, float64 (size, size), sum 1."""
        return kernels.sinc_kernel(self.size, omega=self.omega)


class DrawnDownscale(Settings):
    kind: Literal["downscale"] = "downscale"
    mode: Interpolation


class DrawnGaussianNoise(Settings):
    kind: Literal["gaussian_noise"] = "gaussian_noise"
    sigma: float
    """8-bit levels."""
    gray: bool
    seed: int


class DrawnPoissonNoise(Settings):
    kind: Literal["poisson_noise"] = "poisson_noise"
    scale: float
    gray: bool
    seed: int


class DrawnJpeg(Settings):
    kind: Literal["jpeg"] = "jpeg"
    quality: int


class DrawnResizeBack(Settings):
    kind: Literal["resize_back"] = "resize_back"
    mode: Interpolation


DrawnOperation = Annotated[
    Skipped
    | DrawnBlur
    | DrawnSinc
    | DrawnDownscale
    | DrawnGaussianNoise
    | DrawnPoissonNoise
    | DrawnJpeg
    | DrawnResizeBack,
    Field(discriminator="kind"),
]


class DrawnDegradation(Settings):
    """One degradation with nothing left to chance."""

    scale: float
    """HQ size over LQ size, 1 or more."""
    operations: tuple[DrawnOperation, ...]


def draw_degradation(
    settings: DegradationSettings, rng: np.random.Generator, *, scale: float | None = None
) -> DrawnDegradation:
    """Draws every parameter of the chain; `scale` fixes the downscale factor instead of a draw."""
    if scale is None:
        scale = float(rng.uniform(*settings.scale))
    return DrawnDegradation(
        scale=scale, operations=tuple(_draw(operation, rng) for operation in settings.operations)
    )


def degrade(hq: np.ndarray, drawn: DrawnDegradation) -> np.ndarray:
    """The LQ at HQ size: float32 (H, W, 3) in [0, 1], registered with `hq`.

    `hq` is uint8, or float in [0, 1], of shape (H, W, 3).
    """
    lq = _run(hq, drawn.operations, drawn.scale)
    lq = np.multiply(lq, np.float32(1 / 255), dtype=np.float32)
    return np.clip(lq, 0, 1, out=lq)


def degrade_small(hq: np.ndarray, drawn: DrawnDegradation) -> np.ndarray:
    """The LQ at its own size, uint8 (round(H / scale), round(W / scale), 3): what a user has.

    Runs the chain up to, not including, the resize back.
    """
    before = takewhile(lambda item: not isinstance(item, DrawnResizeBack), drawn.operations)
    return _rounded(_run(hq, before, drawn.scale))


def small_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """`size` over `scale`, each side rounded once and at least 1 pixel."""
    first, second = size
    return max(1, round(first / scale)), max(1, round(second / scale))


def _draw(operation: Operation, rng: np.random.Generator) -> DrawnOperation:
    match operation:
        case Blur():
            return _draw_blur(operation, rng)
        case Downscale():
            return DrawnDownscale(mode=_choice(operation.modes, rng))
        case Noise():
            return _draw_noise(operation, rng)
        case Jpeg():
            low, high = operation.quality
            return DrawnJpeg(quality=int(rng.integers(low, high + 1)))
        case ResizeBack():
            return DrawnResizeBack(mode=_choice(operation.modes, rng))


def _draw_blur(blur: Blur, rng: np.random.Generator) -> Skipped | DrawnBlur | DrawnSinc:
    if rng.random() >= blur.probability:
        return Skipped(operation="blur")
    size = int(_choice(tuple(range(blur.kernel_size[0], blur.kernel_size[1] + 1, 2)), rng))
    if rng.random() < blur.sinc_probability:
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        return DrawnSinc(size=size, omega=float(rng.uniform(lowest, math.pi)))
    weights = np.array(list(blur.shapes.values()))
    shape = list(blur.shapes)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    sigma_x = sigma_y = float(rng.uniform(*blur.sigma))
    theta, beta = 0.0, 1.0
    if shape.endswith("aniso"):
        sigma_y = float(rng.uniform(*blur.sigma))
        theta = float(rng.uniform(-math.pi, math.pi))
    if shape.startswith("generalized"):
        beta = _draw_beta(blur.beta_generalized, rng)
    elif shape.startswith("plateau"):
        beta = _draw_beta(blur.beta_plateau, rng)
    return DrawnBlur(
        shape=shape, size=size, sigma_x=sigma_x, sigma_y=sigma_y, theta=theta, beta=beta
    )


def _draw_beta(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """Half of the draws below 1 and half above, where the bounds leave both open."""
    low, high = bounds
    if low <= 1 <= high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return float(rng.uniform(low, high))


def _draw_noise(
    noise: Noise, rng: np.random.Generator
) -> Skipped | DrawnGaussianNoise | DrawnPoissonNoise:
    if rng.random() >= noise.probability:
        return Skipped(operation="noise")
    gaussian = rng.random() < noise.gaussian_probability
    strength = float(rng.uniform(*(noise.gaussian_sigma if gaussian else noise.poisson_scale)))
    gray = bool(rng.random() < noise.gray_probability)
    seed = int(rng.integers(2**31))
    if gaussian:
        return DrawnGaussianNoise(sigma=strength, gray=gray, seed=seed)
    return DrawnPoissonNoise(scale=strength, gray=gray, seed=seed)


def _choice(options: tuple[T, ...], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _run(hq: np.ndarray, operations: Iterable[DrawnOperation], scale: float) -> np.ndarray:
    pixels = np.multiply(hq, 1 if hq.dtype == np.uint8 else 255, dtype=np.float32)
    for operation in operations:
        pixels = _apply(operation, pixels, scale=scale, size=(hq.shape[1], hq.shape[0]))
    return pixels


def _apply(
    operation: DrawnOperation, pixels: np.ndarray, *, scale: float, size: tuple[int, int]
) -> np.ndarray:
    """One step on float32 (H, W, 3) in 8-bit levels; `size` is the HQ's (width, height)."""
    match operation:
        case Skipped():
            return pixels
        case DrawnBlur() | DrawnSinc():
            return kernels.Filter.of(operation.kernel()).apply(pixels)
        case DrawnDownscale():
            return _resized(pixels, small_size(size, scale), operation.mode)
        case DrawnGaussianNoise():
            noise = gaussian_noise(
                pixels.shape, sigma=operation.sigma, gray=operation.gray, seed=operation.seed
            )
            return pixels + noise
        case DrawnPoissonNoise():
            noise = poisson_noise(
                pixels, scale=operation.scale, gray=operation.gray, seed=operation.seed
            )
            return pixels + noise
        case DrawnJpeg():
            return _jpeg(_rounded(pixels), operation.quality)
        case DrawnResizeBack():
            return _resized(pixels, size, operation.mode)


def _resized(pixels: np.ndarray, size: tuple[int, int], mode: Interpolation) -> np.ndarray:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return cv2.resize(pixels, size, interpolation=_FLAGS[mode])


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """A real JPEG (libjpeg, 4:2:0), there and back."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None, "a JPEG just written can be read"
    return decoded.astype(np.float32)


def _rounded(pixels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
