"""What a user may set about a dataset: the recipe of `flowmapsr dataset build`, checked when read.

Knows no torch, no Ray and no Prefect. Values that follow from others are derived where used.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Interpolation = Literal["nearest", "area", "bilinear", "bicubic"]
KernelShape = Literal[
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"
]
Probability = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of every settings model: unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
PositiveRange = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ordered)
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
        AfterValidator(_ordered),
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
        AfterValidator(_ordered),
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


class PixelBudget(Settings):
    side: int = Field(gt=0)
    """Side of the square that holds as many pixels as the bucket, pixels."""
    probability: float = Field(1.0, gt=0)
    """Relative frequency of this budget."""


class BucketSettings(Settings):
    budgets: tuple[PixelBudget, ...] = Field((PixelBudget(side=512),), min_length=1)
    max_aspect_ratio: float = Field(2.0, ge=1)
    step: int = Field(32, gt=0, multiple_of=8)
    """Bucket sides are multiples of this, pixels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for budget in self.budgets:
            if budget.side < self.step:
                raise ValueError(f"budget side {budget.side} is below the bucket step {self.step}")
        return self


class Augmentation(Settings):
    """Geometric augmentation of the HQ crop, carried by albumentations."""

    flip_probability: Probability = 0.5
    rotate90_probability: Probability = 0.0


class Dct8Settings(Settings):
    """The embedded codec: an orthonormal 8x8 block DCT, lossless and without weights."""

    kind: Literal["dct8"] = "dct8"


class AutoencoderSettings(Settings):
    """A diffusers VAE from a hub id or a local folder."""

    kind: Literal["autoencoder_kl", "autoencoder_tiny"]
    source: str
    """Hub id or local folder."""
    subfolder: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    tiling: bool = False
    slicing: bool = False


CodecSettings = Annotated[Dct8Settings | AutoencoderSettings, Field(discriminator="kind")]


class DatasetRecipe(Settings):
    """Everything that decides the bytes of a dataset, and where and how fast it is made."""

    sources: tuple[str, ...] = Field(min_length=1)
    """Photos: folders, image files, or `s3://` prefixes."""
    output: str
    """The dataset's place: a local folder or an `s3://` prefix."""
    workers: int = Field(2, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    buckets: BucketSettings = BucketSettings()
    crop: Literal["cover", "native", "random"] = "cover"
    """`cover` shrinks the photo to just cover its bucket; `native` cuts at the photo's resolution;
    `random` draws a zoom between the two, log-uniformly."""
    variants: int = Field(1, ge=1, le=99)
    """Samples made of each photo."""
    validation_fraction: Probability = 0.0
    samples_per_shard: int = Field(256, ge=1)
    hq_jpeg_quality: int | None = Field(95, ge=1, le=100)
    """Quality of the stored HQ pixels (`hq.jpg`); null stores none."""
    augmentation: Augmentation = Augmentation()
    degradation: DegradationSettings = DegradationSettings()
    codec: CodecSettings = Dct8Settings()
    max_rejected_fraction: Probability = 0.1
    """The build stops when more than this part of the photos had to be left out."""

    def content(self) -> dict[str, object]:
        """The settings that decide the dataset's bytes: not where, how fast or when to give up."""
        return self.model_dump(mode="json", exclude={"output", "workers", "max_rejected_fraction"})

    def digest(self) -> str:
        """SHA-256 of `content()` as canonical JSON."""
        canonical = json.dumps(self.content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
