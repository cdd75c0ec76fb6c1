"""The drawn parameters of a degradation, one record for each operation.

Stored in every sample's `meta.json`: a renamed field or `kind` makes old datasets unreadable.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from datagen.degradation import kernels
from datagen.degradation.settings import Interpolation, KernelShape
from datagen.records import FrozenModel


class SkippedOperation(FrozenModel):
    """An operation that its probability left out."""

    kind: Literal["skipped"] = "skipped"
    operation: Literal["blur", "sinc", "noise"]


class BlurParams(FrozenModel):
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
        plateau = self.shape.startswith("plateau")
        make = kernels.plateau_kernel if plateau else kernels.gaussian_kernel
        return make(
            self.size, sigma_x=self.sigma_x, sigma_y=self.sigma_y, theta=self.theta, beta=self.beta
        )


class SincParams(FrozenModel):
    kind: Literal["sinc"] = "sinc"
    size: int
    omega: float

    def kernel(self) -> np.ndarray:
        """The kernel, float64 (size, size), sum 1."""
        return kernels.sinc_kernel(self.size, omega=self.omega)


class ResizeParams(FrozenModel):
    kind: Literal["resize"] = "resize"
    relative_to: Literal["hq", "lq"]
    factor: float
    """Of the HQ's size, or of the size that `downscale` makes; 1 keeps it."""
    mode: Interpolation


class DownscaleParams(FrozenModel):
    kind: Literal["downscale"] = "downscale"
    mode: Interpolation


class GaussianNoiseParams(FrozenModel):
    kind: Literal["gaussian_noise"] = "gaussian_noise"
    sigma: float
    """8-bit levels."""
    gray: bool
    seed: int


class PoissonNoiseParams(FrozenModel):
    kind: Literal["poisson_noise"] = "poisson_noise"
    scale: float
    gray: bool
    seed: int


class MaskParams(FrozenModel):
    kind: Literal["mask"] = "mask"
    fraction: float
    seed: int


class BoxParams(FrozenModel):
    kind: Literal["box"] = "box"
    side: float
    """Of the image's shorter side."""
    x: float
    """Of the room that the square leaves beside it, left of it; `y` above it."""
    y: float


class GreyParams(FrozenModel):
    kind: Literal["grey"] = "grey"


class UsmParams(FrozenModel):
    kind: Literal["usm"] = "usm"
    strength: float
    kernel_size: int
    threshold: float
    """8-bit levels."""


class JpegParams(FrozenModel):
    kind: Literal["jpeg"] = "jpeg"
    quality: int


class ResizeBackParams(FrozenModel):
    kind: Literal["resize_back"] = "resize_back"
    mode: Interpolation


AnyBlur = BlurParams | SincParams
AnyResize = ResizeParams | DownscaleParams | ResizeBackParams
AnyNoise = GaussianNoiseParams | PoissonNoiseParams
OperationParams = Annotated[
    SkippedOperation
    | AnyBlur
    | AnyResize
    | AnyNoise
    | MaskParams
    | BoxParams
    | GreyParams
    | UsmParams
    | JpegParams,
    Field(discriminator="kind"),
]


class DegradationParams(FrozenModel):
    """The parameters of a whole chain; those of a chain inside it, where it runs, in line."""

    scale: float
    """HQ size over LQ size."""
    operations: tuple[OperationParams, ...]
