"""What a user may set about the degradation: the operations a chain is made of, in their order.

One small set of operations serves every chain: FlowMapSR's, Real-ESRGAN's and ELIR's. No draws.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from datagen.fields import PositiveRange, Probability, Range, Settings, ordered

Interpolation = Literal["nearest", "area", "bilinear", "bicubic"]
KernelShape = Literal[
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"
]


class Blur(Settings):
    """A random kernel of the Real-ESRGAN family; defaults are FlowMapSR's weakened first order."""

    kind: Literal["blur"] = "blur"
    probability: Probability = 0.7
    kernel_size: tuple[int, int] = (7, 21)
    """Smallest and largest kernel width, pixels; drawn uniformly from the odd numbers between."""
    sigma: PositiveRange = (0.2, 1.5)
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
    beta_plateau: PositiveRange = (1.0, 2.0)
    sinc_probability: Probability = 0.1

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.kernel_size
        if low % 2 == 0 or high % 2 == 0 or not 3 <= low <= high:
            raise ValueError(f"kernel_size {self.kernel_size} must be two odd widths, 3 or more")
        if not sum(self.shapes.values()) > 0:
            raise ValueError("shapes needs at least one weight above 0")
        return self


class Downscale(Settings):
    """Shrinks by the sample's scale; the size is rounded once and stays registered with the HQ."""

    kind: Literal["downscale"] = "downscale"
    modes: tuple[Interpolation, ...] = Field(
        ("nearest", "area", "bilinear", "bicubic"), min_length=1
    )


class Noise(Settings):
    """Gaussian noise with a probability, Poisson noise otherwise."""

    kind: Literal["noise"] = "noise"
    probability: Probability = 1.0
    gaussian_probability: Probability = 0.5
    gaussian_sigma: Range = (1.0, 10.0)
    """Standard deviation in 8-bit levels (of 255)."""
    poisson_scale: Range = (0.05, 1.0)
    gray_probability: Probability = 0.4


class Jpeg(Settings):
    kind: Literal["jpeg"] = "jpeg"
    quality: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]],
        AfterValidator(ordered),
    ] = (30, 95)


class ResizeBack(Settings):
    """Enlarges to exactly the HQ size, so that HQ and LQ are registered."""

    kind: Literal["resize_back"] = "resize_back"
    modes: tuple[Interpolation, ...] = Field(
        ("nearest", "area", "bilinear", "bicubic"), min_length=1
    )


Operation = Annotated[Blur | Downscale | Noise | Jpeg | ResizeBack, Field(discriminator="kind")]


class DegradationSettings(Settings):
    """The chain that makes an LQ image (FlowMapSR, appendix B.1): an ordered list of operations."""

    scale: Annotated[
        tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]],
        AfterValidator(ordered),
    ] = (1.0, 16.0)
    """Bounds of the continuous downscale factor, drawn uniformly once for each image."""
    operations: tuple[Operation, ...] = (
        Blur(),
        Downscale(),
        Noise(),
        Jpeg(),
        ResizeBack(),
        Blur(probability=0.3, sigma=(0.2, 1.0)),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = [operation.kind for operation in self.operations]
        if kinds.count("downscale") != 1 or kinds.count("resize_back") != 1:
            raise ValueError("operations needs exactly one 'downscale' and one 'resize_back'")
        if kinds.index("downscale") > kinds.index("resize_back"):
            raise ValueError("'downscale' must come before 'resize_back'")
        return self
