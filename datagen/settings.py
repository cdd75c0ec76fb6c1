"""What a user may set about a dataset: the recipe of `flowmapsr dataset build`, checked when read.

Knows no torch, no Ray and no Prefect. Values that follow from others are derived where used.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from datagen.degradation.settings import DegradationSettings
from datagen.records import Execution, Probability, Settings


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


class ImageSettings(Settings):
    """What becomes of image files that are not plain upright 8-bit sRGB photos.

    EXIF orientation and colour profiles are always applied; broken profiles are ignored.
    """

    transparent: Literal["reject", "white", "black"] = "reject"
    """Images with an alpha channel that is not opaque everywhere: laid over white or black."""
    animated: Literal["reject", "first_frame"] = "reject"
    """GIF, WebP, APNG with several frames, and TIFF with several pages."""
    gray: Literal["convert", "reject"] = Field(
        "convert", validation_alias=AliasChoices("gray", "grey")
    )
    cmyk: Literal["convert", "reject"] = "convert"
    sixteen_bit: Literal["convert", "reject"] = "convert"
    """Images of more than 8 bits for a colour."""


class FilterSettings(Settings):
    """Which photos are good enough; each one left out is named with its reason."""

    min_side: int = Field(0, ge=0)
    """Shorter side of the upright photo, pixels."""
    max_aspect_ratio: float | None = Field(None, ge=1)
    """Longer side over shorter side."""
    max_megapixels: float = Field(110.0, gt=0)
    """Width times height, millions of pixels: bounds the memory that a worker needs."""
    min_sharpness: float | None = Field(None, gt=0)
    """Variance of the Laplacian of the luma, squared 8-bit levels, after shrinking the photo to
    512x512 pixels in all. Sharp photos have 200 to 4000, out of focus ones below 50."""
    min_jpeg_quality: int | None = Field(None, ge=1, le=100)
    """JPEG files saved with less are left out: libjpeg's quality, as the luma table tells it."""


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
    batch: int = Field(4, ge=1)
    """Samples (of three images each) that are encoded together. Part of the digest: a GPU may round
    a batch of another size differently."""


CodecSettings = Annotated[Dct8Settings | AutoencoderSettings, Field(discriminator="kind")]


class DatasetRecipe(Settings):
    """Everything that decides the bytes of a dataset, and where and how fast it is made."""

    sources: Execution[tuple[str, ...]] = Field(min_length=1)
    """Photos: folders, `s3://` prefixes, image files, `.tar` archives, or `.txt` lists of those."""
    output: Execution[str]
    """The dataset's place: a local folder or an `s3://` prefix."""
    workers: Execution[Annotated[int, Field(ge=1)] | Literal["auto"]] = "auto"
    """Processes that make shards; `auto` takes what the cluster has: one for each GPU where the
    codec has weights and there are GPUs, else one for each CPU."""
    cpus_per_worker: Execution[int | None] = Field(None, ge=1)
    """CPU threads that read, decode and degrade photos in each process; null shares a node's CPUs
    among its workers."""
    gpus_per_worker: Execution[float | None] = Field(None, ge=0)
    """Part of a GPU that each process takes; null as `workers: auto` does, 0 stays on the CPU."""
    seed: int = Field(0, ge=0, lt=2**63)
    buckets: BucketSettings = BucketSettings()
    crop: Literal["cover", "native", "random"] = "cover"
    """`cover` shrinks the photo to just cover its bucket; `native` cuts at the photo's resolution;
    `random` draws a zoom between the two, log-uniformly."""
    samples_per_photo: int = Field(
        1, ge=1, le=99, validation_alias=AliasChoices("samples_per_photo", "variants")
    )
    """Samples made of each photo."""
    validation_fraction: Probability = 0.0
    samples_per_shard: int = Field(256, ge=1)
    """Most samples in a shard. Drawn budgets, quarter turns and splits share them out."""
    hq_jpeg_quality: int | None = Field(95, ge=1, le=100)
    """Quality of the stored HQ pixels (`hq.jpg`); null stores none."""
    images: ImageSettings = ImageSettings()
    filters: FilterSettings = FilterSettings()
    augmentation: Augmentation = Augmentation()
    degradation: DegradationSettings = DegradationSettings()
    codec: CodecSettings = Dct8Settings()
    max_rejected_fraction: Execution[Probability] = 0.1
    """The build stops when more than this part of the photos had to be left out."""

    @property
    def least_workers(self) -> int:
        """How many a cluster of one's own must have room for."""
        return 1 if self.workers == "auto" else self.workers
