"""Draws the parameters of a degradation chain: settings and a random generator to `*Params`.

All randomness is here; `apply.py` turns pixels and parameters into pixels. The order and number of
draws decide the bytes of every dataset, so they must not change.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import TypeVar

import numpy as np

from datagen.degradation import parameters as params
from datagen.degradation import settings as ops

T = TypeVar("T")


def draw_degradation(
    settings: ops.DegradationSettings, rng: np.random.Generator, *, scale: float | None = None
) -> params.DegradationParams:
    """Draws every parameter of the chain; `scale` fixes the downscale factor instead of a draw."""
    if scale is None:
        scale = _draw_scale(settings, rng)
    operations = tuple(_draw_all(settings.operations, rng))
    return params.DegradationParams(scale=scale, operations=operations)


def draw_negative(
    settings: ops.DegradationSettings, rng: np.random.Generator, *, lq_scale: float
) -> params.DegradationParams:
    """The same chain drawn again, its scale uniform between 1 and the LQ's (FlowMapSR, 4.2).

    Where the settings reach below 1, so does the negative.
    """
    lowest = min(1.0, settings.scale[0])
    return draw_degradation(settings, rng, scale=float(rng.uniform(lowest, lq_scale)))


def _draw_scale(settings: ops.DegradationSettings, rng: np.random.Generator) -> float:
    low, high = settings.scale
    match settings.scale_law:
        case "uniform":
            return float(rng.uniform(low, high))
        case "uniform_side":
            scale = 1 / rng.uniform(1 / high, 1 / low)
        case "log_uniform":
            scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    return float(min(max(scale, low), high))  # rounding may leave the bounds


def _draw_all(
    operations: tuple[ops.Operation, ...], rng: np.random.Generator
) -> Iterator[params.OperationParams]:
    for operation in operations:
        if isinstance(operation, ops.Either):
            chain = _weighted_choice(operation.chains, [c.weight for c in operation.chains], rng)
            yield from _draw_all(chain.operations, rng)
        elif isinstance(operation, ops.Sometimes):
            if rng.random() < operation.probability:
                yield from _draw_all(operation.operations, rng)
        else:
            yield _draw(operation, rng)


def _draw(operation: ops.Step, rng: np.random.Generator) -> params.OperationParams:
    match operation:
        case ops.Blur() | ops.Sinc() | ops.Noise() if rng.random() >= operation.probability:
            return params.SkippedOperation(operation=operation.kind)
        case ops.Blur():
            return _draw_blur(operation, rng)
        case ops.Sinc():
            size = _draw_size(operation.kernel_size, rng)
            return params.SincParams(size=size, omega=float(rng.uniform(*operation.omega)))
        case ops.Resize():
            return _draw_resize(operation, rng)
        case ops.Downscale():
            return params.DownscaleParams(mode=_choice(operation.modes, rng))
        case ops.Noise():
            return _draw_noise(operation, rng)
        case ops.Mask():
            fraction = float(rng.uniform(*operation.fraction))
            return params.MaskParams(fraction=fraction, seed=_draw_seed(rng))
        case ops.Box():
            side, x, y = float(rng.uniform(*operation.side)), 0.5, 0.5
            if operation.position == "random":
                x, y = rng.uniform(size=2).tolist()
            return params.BoxParams(side=side, x=x, y=y)
        case ops.Grey():
            return params.GreyParams()
        case ops.Usm(strength=strength, kernel_size=size, threshold=threshold):
            return params.UsmParams(strength=strength, kernel_size=size, threshold=threshold)
        case ops.Jpeg():
            low, high = operation.quality
            return params.JpegParams(quality=int(rng.integers(low, high + 1)))
        case ops.ResizeBack():
            return params.ResizeBackParams(mode=_choice(operation.modes, rng))


def _draw_blur(blur: ops.Blur, rng: np.random.Generator) -> params.AnyBlur:
    size = _draw_size(blur.kernel_size, rng)
    if rng.random() < blur.sinc_probability:
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        return params.SincParams(size=size, omega=float(rng.uniform(lowest, math.pi)))
    shape = _weighted_choice(tuple(blur.shapes), list(blur.shapes.values()), rng)
    sigma_x = sigma_y = float(rng.uniform(*blur.sigma))
    theta, beta = 0.0, 1.0
    if shape.endswith("aniso"):
        sigma_y = float(rng.uniform(*blur.sigma))
        theta = float(rng.uniform(-math.pi, math.pi))
    if shape.startswith("generalized"):
        beta = _draw_beta(blur.beta_generalized, rng)
    elif shape.startswith("plateau"):
        beta = _draw_beta(blur.beta_plateau, rng)
    return params.BlurParams(
        shape=shape, size=size, sigma_x=sigma_x, sigma_y=sigma_y, theta=theta, beta=beta
    )


def _draw_size(widths: tuple[int, int], rng: np.random.Generator) -> int:
    return int(_choice(tuple(range(widths[0], widths[1] + 1, 2)), rng))


def _draw_beta(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """Half of the draws below 1 and half above, where the bounds leave both open."""
    low, high = bounds
    if low <= 1 <= high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return float(rng.uniform(low, high))


def _draw_resize(resize: ops.Resize, rng: np.random.Generator) -> params.ResizeParams:
    chance, factor = rng.random(), 1.0
    if chance < resize.up_probability:
        factor = float(rng.uniform(1, resize.factor[1]))
    elif chance < resize.up_probability + resize.down_probability:
        factor = float(rng.uniform(resize.factor[0], 1))
    mode = _choice(resize.modes, rng)
    return params.ResizeParams(relative_to=resize.relative_to, factor=factor, mode=mode)


def _draw_noise(noise: ops.Noise, rng: np.random.Generator) -> params.AnyNoise:
    gaussian = rng.random() < noise.gaussian_probability
    strength = float(rng.uniform(*(noise.gaussian_sigma if gaussian else noise.poisson_scale)))
    gray = bool(rng.random() < noise.gray_probability)
    seed = _draw_seed(rng)
    if gaussian:
        return params.GaussianNoiseParams(sigma=strength, gray=gray, seed=seed)
    return params.PoissonNoiseParams(scale=strength, gray=gray, seed=seed)


def _draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _choice(options: tuple[T, ...], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _weighted_choice(options: tuple[T, ...], weights: list[float], rng: np.random.Generator) -> T:
    """The draw of `rng.choice(len(options), p=...)`, to the last bit, in a tenth of its time."""
    return options[bisect_right(_cumulated(tuple(weights)), rng.random())]


@lru_cache(maxsize=256)
def _cumulated(weights: tuple[float, ...]) -> list[float]:
    """Ends at 1 exactly, so every draw is below the last one."""
    chances = np.cumsum(np.array(weights) / np.sum(weights))
    return (chances / chances[-1]).tolist()
