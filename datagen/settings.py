"""Settings of a dataset: the recipe of `flowmapsr dataset build`, checked when it is read.

Values that follow from others are derived where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from datagen.degradation.settings import DegradationSettings, Usm
from datagen.pair_settings import PairSettings
from datagen.pipeline_file import pipeline_content
from datagen.records import Execution, HubOrFolder, Location, Probability, Settings


class PixelBudget(Settings):
    """A number of pixels that samples may have, in any aspect ratio."""

    side: int = Field(gt=0)
    """Side of the square with this number of pixels."""
    probability: float = Field(1.0, gt=0)
    """Relative frequency of this budget."""


class BucketSettings(Settings):
    """The sizes of samples: one bucket for each pixel budget and aspect ratio."""

    budgets: tuple[PixelBudget, ...] = Field((PixelBudget(side=512),), min_length=1)
    """Sizes, each drawn with its own probability."""
    max_aspect_ratio: float = Field(2.0, ge=1)
    """Longer side over shorter side of the widest and the tallest bucket."""
    step: int = Field(32, gt=0, multiple_of=8)
    """Sides of buckets are multiples of this, pixels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for budget in self.budgets:
            if budget.side < self.step:
                raise ValueError(f"budget side {budget.side} is below the bucket step {self.step}")
        return self


class Augmentation(Settings):
    """Augmentation of the HQ crop, before it is degraded."""

    flip_probability: Probability = 0.5
    """How often a crop is mirrored left to right."""
    rotate90_probability: Probability = 0.0
    """How often a crop is turned by one, two or three quarters."""
    pipeline: Annotated[dict[str, Any] | None, BeforeValidator(pipeline_content)] = None
    """File with a pipeline of albumentations, JSON or YAML as its `save` writes it, that runs after
    flips and turns. The recipe keeps what the file says, not its name."""


class ImageSettings(Settings):
    """Handling of transparent, damaged, animated, gray, CMYK and 16-bit images.

    EXIF orientation and color profiles are always applied; broken profiles are ignored.
    """

    transparent: Literal["reject", "white", "black"] = "reject"
    """Images with an alpha channel that is not opaque everywhere: left out or laid over a color."""
    damaged: Literal["reject", "accept"] = "reject"
    """JPEG and TIFF files with faults that decoders pass over with a warning: parts of them are
    gray or in wrong colors."""
    animated: Literal["reject", "first_frame"] = "reject"
    """GIF, WebP and APNG files with several frames, and TIFF files with several pages."""
    gray: Literal["convert", "reject"] = Field(
        "convert",
        validation_alias=AliasChoices("gray", "grey"),  # codespell:ignore grey
    )
    """Images without color."""
    cmyk: Literal["convert", "reject"] = "convert"
    """Images in printing colors."""
    sixteen_bit: Literal["convert", "reject"] = "convert"
    """Images with more than 8 bits per channel."""


class FilterSettings(Settings):
    """Which photos are good enough; the others are listed with their reason in `rejected.jsonl`."""

    min_side: int = Field(0, ge=0)
    """Least shorter side of the upright photo, pixels."""
    max_aspect_ratio: float | None = Field(None, ge=1)
    """Largest ratio of the longer to the shorter side."""
    max_megapixels: float = Field(110.0, gt=0)
    """Largest width times height, 10^6 pixels; it bounds the memory that a worker needs. A photo
    whose decoding takes more than 10 bytes for each of so many pixels is too large as well."""
    min_sharpness: float | None = Field(None, gt=0)
    """Least variance of the Laplacian of the luma, squared 8-bit levels, with the photo reduced to
    the number of pixels of 512x512. Sharp photos have 200 to 4000, blurred ones less than 50."""
    min_jpeg_quality: int | None = Field(None, ge=1, le=100)
    """Least quality of JPEG files, as libjpeg counts it, estimated from the luma table."""
    max_pair_offset: float = Field(8.0, gt=0, exclude_if=lambda offset: offset == 8)
    """Largest distance, HQ pixels, of a corner of a pair's LQ from the place that the sizes give
    it."""


class DctSettings(Settings):
    """The built-in codecs: an orthonormal block DCT, lossless and without weights."""

    kind: Literal["dct8", "dct4"] = "dct8"
    """Blocks of 8x8 pixels (192 channels at 1/8 of the size) or 4x4 (48 at 1/4)."""
    batch: ClassVar[int] = 1

    @property
    def block(self) -> int:
        """Side of a block, pixels."""
        return 8 if self.kind == "dct8" else 4


class AutoencoderSettings(Settings):
    """A VAE of diffusers."""

    kind: Literal["autoencoder_kl", "autoencoder_tiny"]
    source: HubOrFolder = Field(examples=["stabilityai/sdxl-vae"])
    """Hub id (`owner/name`), or a local folder that starts with `/`, `.` or `~`."""
    subfolder: str | None = None
    """Folder inside the source, such as `vae` in a whole Stable Diffusion checkpoint."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of its weights and activations."""
    tiling: bool = False
    """Encode images larger than 512 pixels in tiles, which need less memory and two to six times as
    long. Latents are those of the whole image, without seams, but for rounding."""
    slicing: bool = False
    """Encode one image after another: less memory."""
    batch: int = Field(4, ge=1)
    """Samples, of three images each, that are encoded together. Content, because a GPU may round
    differently in a batch of another size."""


LatentName = Literal["hq", "lq", "neg"]
LATENT_NAMES: tuple[LatentName, ...] = get_args(LatentName)
LqPixels = Literal["none", "small", "full"]

CodecSettings = Annotated[DctSettings | AutoencoderSettings, Field(discriminator="kind")]


class DatasetRecipe(Settings):
    """Everything that decides the bytes of a dataset, and where and how it is made."""

    sources: Execution[tuple[Location, ...]] = Field(examples=[["/path/to/photos"]])
    """Photos: folders, `s3://` prefixes, image files, `.tar` archives, or `.txt` lists of these.
    Where there are `pairs`, none need be given."""
    pairs: Execution[tuple[PairSettings, ...]] = Field(None, validate_default=True)
    """Photos whose LQ is real and not made by `degradation`, which then makes only the negative."""
    output: Execution[Location] = Field(examples=["/path/to/output"])
    """Local folder or `s3://` prefix that the dataset is written to."""
    workers: Execution[Annotated[int, Field(ge=1)] | Literal["auto"]] = "auto"
    """Processes that make shards. `auto`: one for each GPU of the cluster if the codec has weights,
    else one for each CPU."""
    cpus_per_worker: Execution[int | None] = Field(None, ge=1)
    """CPU threads in each process that read, decode and degrade photos; null shares the CPUs of a
    node among its workers."""
    gpus_per_worker: Execution[float | None] = Field(None, ge=0)
    """Part of a GPU that each process takes: 0 stays on the CPU, null is as `workers: auto`."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all random draws; each sample has its own, derived from this one and its key."""
    buckets: BucketSettings = BucketSettings()
    """Sizes of the samples."""
    crop: Literal["cover", "native", "random"] = "cover"
    """`cover` shrinks the photo until it just covers its bucket, `native` cuts at the photo's
    resolution, `random` draws a zoom between the two, log-uniformly."""
    samples_per_photo: int = Field(
        1, ge=1, le=99, validation_alias=AliasChoices("samples_per_photo", "variants")
    )
    """Samples made of each photo, each with its own crop and degradation."""
    validation_fraction: Probability = 0.0
    """Part of the photos whose samples go to the validation split and are never trained on."""
    samples_per_shard: int = Field(256, ge=1)
    """Largest number of samples in a shard; it has fewer where buckets and splits divide them."""
    latents: tuple[LatentName, ...] = ("hq", "lq", "neg")
    """Which images are stored as latents: `hq`, `lq`, and the negative `neg`, which guidance needs.
    None of them (`[]`) makes a dataset of pixels, without a codec."""
    hq_pixels: Literal["jpeg", "png", "none"] = "jpeg"
    """How the HQ pixels are stored, which perceptual losses and training on pixels need: PNG is
    lossless and four times as large."""
    hq_jpeg_quality: int = Field(95, ge=1, le=100)
    """JPEG quality of the stored HQ pixels."""
    lq_pixels: LqPixels = "none"
    """Whether the LQ pixels are stored as PNG, for training on pixels. `small`: at their own size,
    the rest of the chain is run when they are read, without loss. `full`: at the size of the HQ,
    rounded to 8 bits."""
    images: ImageSettings = ImageSettings()
    """Image files that are not plain 8-bit color photos."""
    filters: FilterSettings = FilterSettings()
    """Photos that are left out."""
    augmentation: Augmentation = Augmentation()
    """Flips, turns and a pipeline of albumentations."""
    degradation: DegradationSettings = DegradationSettings()
    """The chain that makes the LQ image and the negative out of the HQ image."""
    sharpen: Usm | None = None
    """Sharpens the HQ, of which LQ and negative are then made: Real-ESRGAN's target with `{}`. Has
    the settings of the operation `usm`, which sharpens what is degraded but not the target."""
    codec: CodecSettings = DctSettings()
    """What encodes images to latents; not used where `latents` is empty."""
    max_rejected_fraction: Execution[Probability] = 0.1
    """The build fails when more than this part of the photos cannot be used; those that `filters`
    leave out do not count."""

    @model_validator(mode="before")
    @classmethod
    def _pairs_alone(cls, values: Any) -> Any:
        """Beside pairs no other photos need be given."""
        alone = isinstance(values, dict) and values.get("pairs") and "sources" not in values
        return {**values, "sources": ()} if alone else values

    @field_validator("sources", mode="before")
    @classmethod
    def _listed(cls, sources: Any) -> Any:
        """One source may be written without brackets."""
        return [sources] if isinstance(sources, str) or sources is None else sources

    @field_validator("pairs", mode="before")
    @classmethod
    def _listed_pairs(cls, pairs: Any) -> Any:
        return [pairs] if isinstance(pairs, Mapping) else pairs or ()

    @field_validator("latents")
    @classmethod
    def _each_once(cls, names: tuple[LatentName, ...]) -> tuple[LatentName, ...]:
        """In the order in which they are stored."""
        if len(set(names)) < len(names):
            raise ValueError(f"{list(names)} names one twice: give each of hq, lq and neg once")
        return tuple(sorted(names, key=LATENT_NAMES.index))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "hq" not in self.latents and self.hq_pixels == "none":
            raise ValueError(
                "latents without hq and hq_pixels=none leave nothing of the HQ to train on: "
                "set hq_pixels=jpeg or png, or add hq to latents"
            )
        if not (self.sources or self.pairs):
            raise ValueError("sources = [] and pairs = []: give at least 1 source, or pairs")
        if self.pairs:
            self._check_pairs()
        return self

    def _check_pairs(self) -> None:
        if self.lq_pixels == "small":
            raise ValueError(
                "lq_pixels=small keeps what the degradation of an HQ made; the LQ of pairs is laid "
                "on the pixels of the HQ: set lq_pixels=full"
            )
        if self.lq_pixels == "none" and "lq" not in self.latents:
            raise ValueError(
                "latents without lq and lq_pixels=none leave nothing of the LQ of pairs: set "
                "lq_pixels=full, or add lq to latents"
            )
        if self.augmentation.pipeline is not None:
            raise ValueError(
                "augmentation.pipeline changes the HQ alone, and the LQ of pairs is not made of "
                "it: remove it; flips and turns are done to both"
            )

    @property
    def places(self) -> tuple[str, ...]:
        """All addresses that photos come from."""
        pairs = (place for pair in self.pairs for place in (pair.hq, pair.lq))
        return tuple(dict.fromkeys([*self.sources, *pairs]))

    @property
    def least_workers(self) -> int:
        """How many a local cluster must have room for."""
        return 1 if self.workers == "auto" else self.workers
