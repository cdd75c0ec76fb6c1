"""Settings of the network and of the prompts that condition it. Defaults are FlowMapSR's."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from datagen.records import HubOrFolder, Settings

POSITIVE_PROMPT = (
    "a high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and "
    "natural lighting"
)
NEGATIVE_PROMPT = (
    "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, "
    "oversmooth"
)
DEFAULT_KIND: Literal["flowmap"] = "flowmap"
"""Kind of recipes and model folders without one, which are older than the second kind."""


class SystemSettings(Settings):
    """What the model settings of every system have."""

    kind: str

    @property
    def latent_multiple(self) -> int:
        """Sides of latents must be multiples of this."""
        return 1

    @property
    def downsample(self) -> int | None:
        """Pixels to a latent of the model's own codec; None where it takes a dataset's latents."""
        return None

    @property
    def other_sides(self) -> str:
        """How the model could take other sides, after what to do with the dataset."""
        return ""


class ModelSettings(SystemSettings):
    """Size of `FlowMapNet`, a diffusers `UNet2DConditionModel` (defaults: SDXL-like, 2.43 B)."""

    kind: Literal["flowmap"] = DEFAULT_KIND
    block_channels: tuple[int, ...] = Field((320, 640, 1280), min_length=1)
    """Channels of each block, from the highest to the lowest resolution."""
    layers_per_block: int = Field(2, ge=1)
    """ResNet layers of each block."""
    transformer_layers: tuple[Annotated[int, Field(ge=0)], ...] = (0, 2, 10)
    """Transformer layers after each ResNet layer of a block; 0 makes the block convolutional."""
    attention_heads: tuple[int, ...] = (5, 10, 20)
    """Attention heads of each block."""
    norm_groups: int = Field(32, ge=1)
    """Groups of the group norms; it must divide the channels of every block."""
    time_channels: int = Field(256, ge=2, multiple_of=2)
    """Channels of the embedding of s, and of w when `guidance_conditioning` is on."""
    prompt_channels: int = Field(1280, ge=1)
    """Channels of a prompt embedding; those of the text encoders where `prompts` uses them."""
    input_gain: bool = False
    """Predict a gain for every latent value beside an offset: u = b + g * x. Group norms hide how
    large a latent is, so a small network cannot scale many channels down without this."""
    guidance_conditioning: bool = Field(
        True, validation_alias=AliasChoices("guidance_conditioning", "guidance_input")
    )
    """Give the guidance strength w to the model as an input, so that it can be chosen at inference.
    The paper's model does not see w and learns the mean strength only."""
    time_embedding_scale: float = Field(
        1000.0, gt=0, validation_alias=AliasChoices("time_embedding_scale", "time_scale")
    )
    """Factor of t in the U-Net's time embedding. Diffusion checkpoints expect 1000; the Eulerian
    formulation differentiates in t, and 1 makes that derivative 1000 times smaller."""

    @property
    def latent_multiple(self) -> int:
        """Every block but the last one halves them."""
        return 2 ** (len(self.block_channels) - 1)

    @property
    def other_sides(self) -> str:
        return ", or use fewer model.block_channels"

    @model_validator(mode="after")
    def _check(self) -> Self:
        blocks = len(self.block_channels)
        for name in ("transformer_layers", "attention_heads"):
            if len(getattr(self, name)) != blocks:
                raise ValueError(f"{name} needs {blocks} values, one for each of block_channels")
        for channels, heads in zip(self.block_channels, self.attention_heads, strict=True):
            if channels % heads or channels % self.norm_groups:
                raise ValueError(
                    f"block_channels {channels} must be divisible by its attention_heads ({heads}) "
                    f"and by norm_groups ({self.norm_groups})"
                )
        return self


class StandInPrompts(Settings):
    """Two fixed random embeddings: enough where there are only two conditions."""

    kind: Literal["stand_in"] = "stand_in"


class TextEncoderPrompts(Settings):
    """Pooled embeddings of both prompts by the text encoders of an SDXL-like checkpoint."""

    kind: Literal["text_encoders"] = "text_encoders"
    source: HubOrFolder = Field(examples=["stabilityai/stable-diffusion-xl-base-1.0"])
    """Hub id (`owner/name`), or a local folder that starts with `/`, `.` or `~`."""
    encoders: tuple[Literal["text_encoder", "text_encoder_2"], ...] = Field(
        ("text_encoder_2",), min_length=1
    )
    """Subfolders of the source; the pooled outputs of several are concatenated. SDXL's own pooled
    embedding is that of the second one, 1280 channels."""
    positive: str = Field(POSITIVE_PROMPT, min_length=1)
    """Text for HQ targets."""
    negative: str = Field(NEGATIVE_PROMPT, min_length=1)
    """Text for negative targets."""


PromptSettings = Annotated[StandInPrompts | TextEncoderPrompts, Field(discriminator="kind")]
