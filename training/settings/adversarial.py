"""Settings of an adversarial stage: its LoRA, its discriminator and when it has converged."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from datagen.records import Correctable, Settings

PositiveInt = Annotated[int, Field(ge=1)]


class LoraSettings(Settings):
    """The only trained parameters of the generator: low-rank additions to a frozen network."""

    rank: int = Field(64, ge=1)
    """Rank of each addition."""
    target_modules: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Names, or ends of names, of linear and convolutional layers of the network."""
    scale: float = Field(1.5, ge=0)
    """Default strength of the LoRA at inference; it is trained at 1."""


class DiscriminatorSettings(Settings):
    """A patch discriminator on latents; convolutions with kernel 4 and padding 1."""

    channels: tuple[PositiveInt, ...] = Field((64, 128, 256, 512), min_length=1)
    """Output channels of each convolution but the last one, which gives the score."""
    strides: tuple[PositiveInt, ...] = (2, 2, 2, 1, 1)
    """Stride of each convolution: one for each of `channels`, and one for that of the score."""
    norm_groups: int = Field(32, ge=1)
    """Groups of the group norms; it must divide all of `channels` but the first."""
    learning_rate: float = Field(1e-4, gt=0)
    """Constant learning rate of the discriminator's AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of the discriminator's AdamW."""
    warmup_steps: int = Field(500, ge=1)
    """Steps at the start of the stage that train the discriminator alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.strides) != len(self.channels) + 1:
            raise ValueError(
                f"strides needs {len(self.channels) + 1} values: one for each of channels and one "
                "for the convolution that gives the score"
            )
        for channels in self.channels[1:]:
            if channels % self.norm_groups:
                raise ValueError(
                    f"channels {channels} must be divisible by norm_groups {self.norm_groups}"
                )
        return self

    def patches(self, side: int) -> int:
        """Scores along a side of `side` latent values; 0 or less when that is too small."""
        for stride in self.strides:
            side = (side - 2) // stride + 1
        return side


class ConvergenceSettings(Settings):
    """The stage ends when the moving averages of the real and the fake score have met, after the
    real one led by more than `tolerance`; where it never did, all steps are taken."""

    window: int = Field(100, ge=1)
    """Steps of the moving averages, which start after the discriminator's warm-up."""
    tolerance: float = Field(0.02, ge=0)
    """They have met when they differ by no more than this."""


class AdversarialSettings(Settings):
    """RPGAN on LoRA parameters; the stage's `steps` count the updates of both networks."""

    lora: LoraSettings = LoraSettings()
    """What the generator trains."""
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    """The network that learns to distinguish real from generated latents."""
    convergence: Correctable[ConvergenceSettings] = ConvergenceSettings()
    """When the stage ends before its last step; a tolerance of 0 takes all steps."""
    flow_map_loss_weight: float = Field(1.0, ge=0)
    """lambda_orig: weight of the stage's own objective beside the adversarial loss."""
