"""Settings of ELIR: its network and its objective. Defaults are the paper's (arXiv 2502.03500)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from datagen.records import HubOrFolder, Probability, Settings
from training.settings.model import SystemSettings

LATENT_MULTIPLE = 4
"""The field halves the sides of latents twice."""


class TinyAutoencoder(Settings):
    """A tiny autoencoder in the layout of diffusers' `AutoencoderTiny`: 8 pixels to a latent."""

    kind: Literal["autoencoder_tiny"] = "autoencoder_tiny"
    source: HubOrFolder = "madebyollin/taesd3"
    """Hub id (`owner/name`), or a local folder that starts with `/`, `.` or `~`."""

    @property
    def downsample(self) -> int:
        return 8


class BlockCodec(Settings):
    """Convolutions that start as the block DCT, and need no weights; `pixels` is no codec."""

    kind: Literal["dct8", "dct4", "pixels"]
    """Blocks of 8x8 pixels (192 channels), of 4x4 (48), or the pixels themselves (3)."""

    @property
    def downsample(self) -> int:
        """Side of a block, pixels."""
        return {"dct8": 8, "dct4": 4, "pixels": 1}[self.kind]


class ElirModelSettings(SystemSettings):
    """ELIR: an encoder, a coarse estimator, a convolutional vector field and a decoder (defaults:
    27 M parameters, those of the face tasks at 256 pixels)."""

    kind: Literal["elir"] = "elir"
    codec: Annotated[TinyAutoencoder | BlockCodec, Field(discriminator="kind")] = TinyAutoencoder()
    """The frozen encoder and decoder, part of the model. The dataset's own codec is not used."""
    width: int = Field(128, ge=32, multiple_of=32)
    """Channels of the field at the latents' own size; group norms have 32 groups."""
    middle_blocks: int = Field(1, ge=1)
    """Residual blocks of the field at its smallest size; 3 for faces of 512 pixels."""
    coarse_growth: int = Field(96, ge=1)
    """Channels that each convolution of the coarse estimator's dense blocks adds."""
    expand: int | None = Field(4, ge=1)
    """In training a 3x3 convolution has so many times its output channels, which a 1x1 convolution
    brings back; the model's files hold the two collapsed to one. Null trains the collapsed ones."""
    parts: Literal["coarse_and_field", "coarse", "field"] = "coarse_and_field"
    """What follows the encoder; one part alone is an ablation."""

    @property
    def has_coarse(self) -> bool:
        return self.parts != "field"

    @property
    def has_field(self) -> bool:
        return self.parts != "coarse"

    @property
    def latent_multiple(self) -> int:
        return LATENT_MULTIPLE

    @property
    def downsample(self) -> int:
        return self.codec.downsample


class LatentConsistency(Settings):
    """Latent consistency flow matching and two squared errors, L2 + (1 - beta) LCFM + beta MSE."""

    kind: Literal["latent_consistency"] = "latent_consistency"
    segments: int = Field(3, ge=1)
    """K: the segments of time, in which the field learns to be constant; also M, the steps of the
    trained model."""
    time_step: float = Field(0.05, gt=0, lt=1)
    """How far apart the two times of a consistency target are: smaller is sharper. From
    1 / segments on nothing is left to learn from, and the result is the blurred mean."""
    alpha: float = Field(1e-3, ge=0)
    """Weight of the difference of the two velocities."""
    beta: Probability = 1e-3
    """Weight of the squared error of decoded pixels in [0, 1]. It has no gradient in the last
    segment, so with a single one it does nothing."""
    sigma_min: float = Field(1e-5, ge=0, lt=1)
    """Part of the source that is left at the end of a path."""
    sigma_s: float = Field(0.1, ge=0)
    """Standard deviation of the noise on the coarse estimate: more is sharper and less exact."""
    train_encoder: bool = True
    """Trains a copy of the codec's encoder for the LQ; else it stays the codec's."""
    flow: Literal["latent_consistency", "flow_matching"] = "latent_consistency"
    """How the field is trained; plain flow matching is an ablation."""
    time_range: Literal["paper", "full"] = "paper"
    """Times are drawn up to 1 - time_step, or up to 1 (as Consistency-FM)."""

    @property
    def warnings(self) -> tuple[str, ...]:
        if self.flow == "flow_matching" or self.time_step < 1 / self.segments:
            return ()
        return (
            f"objective.time_step {self.time_step:g} is as long as one of {self.segments} segments:"
            " every target is the path's own point, and the result is the blurred mean; set "
            f"time_step below {1 / self.segments:.3g}, such as 0.05",
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.segments == 1 and self.beta > 0 and self.flow == "latent_consistency":
            raise ValueError(
                f"beta {self.beta:g} has no effect with segments 1: the error of pixels has no "
                "gradient in the last segment; set beta=0, or segments of 2 or more"
            )
        return self
