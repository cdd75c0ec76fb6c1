"""Settings of the degradation: the operations of a chain, in their order.

One small set of operations serves every chain: FlowMapSR's, Real-ESRGAN's and ELIR's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from datagen.records import NonNegativeRange, PositiveRange, Probability, Range, Settings

Interpolation = Literal[
    "nearest", "area", "bilinear", "bicubic", "bilinear_antialiased", "bicubic_antialiased"
]
"""The first four are OpenCV's; the last two widen the triangle and the cubic when shrinking, as
Pillow and `interpolate(antialias=True)` do."""
ScaleLaw = Literal["uniform", "uniform_side", "log_uniform"]
KernelShape = Literal[
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"
]
Modes = Annotated[tuple[Interpolation, ...], Field(min_length=1)]
_PLAIN_MODES: tuple[Interpolation, ...] = ("nearest", "area", "bilinear", "bicubic")


def _odd_widths(widths: tuple[int, int]) -> tuple[int, int]:
    low, high = widths
    if low % 2 == 0 or high % 2 == 0 or not 3 <= low <= high:
        raise ValueError(f"{widths} must be two odd widths, 3 or more, the smaller one first")
    return widths


def _odd_width(width: int) -> int:
    if width % 2 == 0 or not 3 <= width <= 255:
        raise ValueError(f"{width} must be an odd width from 3 to 255, such as 51")
    return width


KernelSize = Annotated[tuple[int, int], AfterValidator(_odd_widths)]
Angle = Annotated[float, Field(gt=0, le=math.pi)]


class Blur(Settings):
    """A random kernel of the Real-ESRGAN family; defaults are FlowMapSR's weakened first order."""

    kind: Literal["blur"] = "blur"
    probability: Probability = 0.7
    """How often it is applied."""
    kernel_size: KernelSize = (7, 21)
    """Smallest and largest kernel width, pixels; drawn uniformly from the odd numbers between."""
    sigma: PositiveRange = (0.2, 1.5)
    """Standard deviation along each axis of the kernel, pixels."""
    shapes: dict[KernelShape, Annotated[float, Field(ge=0)]] = {
        "iso": 0.45,
        "aniso": 0.25,
        "generalized_iso": 0.12,
        "generalized_aniso": 0.03,
        "plateau_iso": 0.12,
        "plateau_aniso": 0.03,
    }
    """Relative frequency of each kernel shape."""
    beta_generalized: PositiveRange = (0.5, 4.0)
    """Exponent of the generalized Gaussian shapes."""
    beta_plateau: PositiveRange = (1.0, 2.0)
    """Exponent of the plateau shapes."""
    sinc_probability: Probability = 0.1
    """How often a sinc replaces the shape; its cut-off is U(pi/3, pi) in kernels narrower
    than 13 pixels and U(pi/5, pi) in wider ones."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not sum(self.shapes.values()) > 0:
            raise ValueError("shapes needs at least one weight above 0")
        return self


class Sinc(Settings):
    """A circular low pass that rings and overshoots, as over-sharpened photos do."""

    kind: Literal["sinc"] = "sinc"
    probability: Probability = 0.8
    """How often it is applied."""
    kernel_size: KernelSize = (7, 21)
    """Smallest and largest kernel width, pixels; drawn uniformly from the odd numbers between."""
    omega: Range[Angle] = (math.pi / 3, math.pi)
    """Cut-off frequency, radians per pixel."""


class Resize(Settings):
    """A random resize up, down or not at all, to an explicit size that stays registered."""

    kind: Literal["resize"] = "resize"
    relative_to: Literal["hq", "lq"] = "hq"
    """What the factor multiplies: the size of the HQ, or the size that `downscale` will make."""
    up_probability: Probability = 0.2
    """How often it enlarges."""
    down_probability: Probability = 0.7
    """How often it shrinks; in the remaining cases the size is kept."""
    factor: Range[Annotated[float, Field(gt=0, le=4)]] = (0.15, 1.5)
    """Down draws from U(lowest, 1), up from U(1, highest)."""
    modes: Modes = ("area", "bilinear", "bicubic")
    """Interpolations, drawn uniformly."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.up_probability + self.down_probability > 1 + 1e-9:
            raise ValueError("up_probability and down_probability add up to more than 1")
        if not self.factor[0] <= 1 <= self.factor[1]:
            raise ValueError(f"factor {self.factor} must reach from 1 or below to 1 or above")
        return self


class Downscale(Settings):
    """Shrinks by the sample's scale; the size is rounded once and stays registered with the HQ."""

    kind: Literal["downscale"] = "downscale"
    modes: Modes = _PLAIN_MODES
    """Interpolations, drawn uniformly."""


class Noise(Settings):
    """Gaussian noise with a probability, Poisson noise otherwise; the result is clipped."""

    kind: Literal["noise"] = "noise"
    probability: Probability = 1.0
    """How often it is applied."""
    gaussian_probability: Probability = 0.5
    """How often the noise is Gaussian; otherwise it is Poisson."""
    gaussian_sigma: NonNegativeRange = (1.0, 10.0)
    """Standard deviation in 8-bit levels (of 255)."""
    poisson_scale: NonNegativeRange = (0.05, 1.0)
    """Factor of the Poisson noise; 1 is the shot noise of the image itself."""
    gray_probability: Probability = 0.4
    """How often all channels have the same noise."""


class Mask(Settings):
    """Blackens random pixels, all channels together: what inpainting has to fill."""

    kind: Literal["mask"] = "mask"
    fraction: Range[Probability] = (0.9, 0.9)
    """Exactly this fraction of the pixels (rounded down) is lost."""


class Box(Settings):
    """Blackens a square: inpainting then has to make up what was in it."""

    kind: Literal["box"] = "box"
    side: Range[Annotated[float, Field(gt=0, le=1)]] = (0.5, 0.5)
    """Side of the square over the shorter side of the image, drawn uniformly."""
    position: Literal["center", "random"] = "center"
    """Where the square is: in the middle, or anywhere inside the image."""


class Grey(Settings):
    """Removes the color: every channel becomes the mean of the three."""

    kind: Literal["grey"] = "grey"


class Usm(Settings):
    """Sharpens by an unsharp mask, only where edges are; defaults are Real-ESRGAN's."""

    kind: Literal["usm"] = "usm"
    strength: float = Field(0.5, gt=0, le=4)
    """Part of the difference to the blurred image that is added."""
    kernel_size: Annotated[int, AfterValidator(_odd_width)] = 51
    """Width of the Gaussian, pixels. Its standard deviation is 0.15 times that plus 0.35: 8."""
    threshold: float = Field(10.0, ge=0, le=255)
    """Least difference of an edge, 8-bit levels."""


class Jpeg(Settings):
    """Saves as JPEG and reads it again."""

    kind: Literal["jpeg"] = "jpeg"
    quality: Range[Annotated[int, Field(ge=1, le=100)]] = (30, 95)
    """Lowest and highest quality, drawn uniformly."""


class ResizeBack(Settings):
    """Rounds the LQ to 8 bits and enlarges it to exactly the HQ size, registered with it."""

    kind: Literal["resize_back"] = "resize_back"
    modes: Modes = _PLAIN_MODES
    """Interpolations, drawn uniformly."""


class Chain(Settings):
    """One alternative of an `either`."""

    weight: float = Field(1.0, gt=0)
    """Relative frequency of this chain."""
    operations: tuple[Operation, ...]
    """The operations, in their order."""


class Either(Settings):
    """Runs one of several chains."""

    kind: Literal["either"] = "either"
    chains: tuple[Chain, ...] = Field(min_length=2)
    """The alternatives."""


class Sometimes(Settings):
    """Runs a chain with a probability, such as the second order of a degradation."""

    kind: Literal["sometimes"] = "sometimes"
    probability: Probability = 0.5
    """How often it is run; 0 is never, 1 is always."""
    operations: tuple[Operation, ...] = Field(min_length=1)
    """The operations, in their order."""


Step = Blur | Sinc | Resize | Downscale | Noise | Mask | Box | Grey | Usm | Jpeg | ResizeBack
Operation = Annotated[Step | Either | Sometimes, Field(discriminator="kind")]


class DegradationSettings(Settings):
    """The chain that makes an LQ image (FlowMapSR, appendix B.1): an ordered list of operations."""

    scale: Range[Annotated[float, Field(ge=0.25)]] = (1.0, 16.0)
    """Bounds of the downscale factor, drawn for each image. Below 1 the LQ is larger than the HQ:
    at 0.25 it has 16 times its pixels, and takes as much more memory."""
    scale_law: ScaleLaw = "uniform"
    """How the factor is drawn: `uniform` itself, its inverse by `uniform_side` (every side of the
    LQ is as likely, so small factors are frequent), or its logarithm by `log_uniform`. That of the
    negative is uniform between 1 and the LQ's."""
    operations: tuple[Operation, ...] = (
        Blur(),
        Downscale(),
        Noise(),
        Jpeg(),
        ResizeBack(),
        Blur(probability=0.3, sigma=(0.2, 1.0)),
    )
    """The operations, in their order."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for path in paths(self.operations):
            kinds = [operation.kind for operation in path]
            if kinds.count("downscale") != 1 or kinds.count("resize_back") != 1:
                raise ValueError(
                    "operations needs exactly one 'downscale' and one 'resize_back' "
                    f"in every alternative, not: {', '.join(kinds) or 'none'}"
                )
            if kinds.index("downscale") > kinds.index("resize_back"):
                raise ValueError("'downscale' must come before 'resize_back'")
            if "resize" in kinds[kinds.index("downscale") :]:
                raise ValueError("'resize' must come before 'downscale', which sets the LQ's size")
        return self


def largest_image(settings: DegradationSettings) -> float:
    """The most pixels that an image has on its way through the chain, in those of the HQ."""
    lq = 1 / settings.scale[0]
    sides = [1.0, lq]
    for path in paths(settings.operations):
        resizes = [step for step in path if isinstance(step, Resize)]
        sides += [step.factor[1] * (1 if step.relative_to == "hq" else lq) for step in resizes]
    return max(sides) ** 2


def paths(operations: tuple[Operation, ...]) -> Iterator[list[Operation]]:
    """The operations in order, for each path through the chain."""
    for choice in product(*map(_alternatives, operations)):
        yield [operation for path in choice for operation in path]


def _alternatives(operation: Operation) -> list[list[Operation]]:
    """The chains of which one runs in place of an operation."""
    match operation:
        case Either():
            return [path for branch in operation.chains for path in paths(branch.operations)]
        case Sometimes():
            run = list(paths(operation.operations)) if operation.probability > 0 else []
            return run + ([[]] if operation.probability < 1 else [])
        case _:
            return [[operation]]
