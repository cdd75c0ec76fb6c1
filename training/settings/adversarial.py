"""What a user may set about an adversarial stage: LoRA, discriminator and when it has converged.

Knows no torch. Defaults are method.md's; every number is a setting.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from datagen.records import Settings

PositiveInt = Annotated[int, Field(ge=1)]


class LoraSettings(Settings):
    """The generator's only trained parameters: low-rank additions to a frozen network."""

    rank: int = Field(64, ge=1)
    target_modules: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Names, or last parts of names, of the network's linear and convolutional layers."""
    scale: float = Field(1.5, ge=0)
    """How strongly the LoRA acts at inference unless told otherwise; it is trained at 1."""


class DiscriminatorSettings(Settings):
    """A patch discriminator on latents; convolutions with kernel 4 and padding 1."""

    channels: tuple[PositiveInt, ...] = Field((64, 128, 256, 512), min_length=1)
    strides: tuple[PositiveInt, ...] = (2, 2, 2, 1, 1)
    """One for each of `channels`, and one for the convolution that gives the score."""
    norm_groups: int = Field(32, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
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
        """Scores along a latent's side of `side` values; 0 or less when it is too small."""
        for stride in self.strides:
            side = (side - 2) // stride + 1
        return side


class ConvergenceSettings(Settings):
    """The stage ends when the moving averages of real and fake score have met."""

    window: int = Field(100, ge=1)
    """Steps that the averages look back on, counted from the end of the discriminator's warm-up."""
    tolerance: float = Field(0.02, ge=0)
    """Largest lead of the real score's average that still counts as met."""


class AdversarialSettings(Settings):
    """RPGAN on LoRA parameters; the stage's `steps` count the updates of both networks."""

    lora: LoraSettings = LoraSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    convergence: ConvergenceSettings = ConvergenceSettings()
    flow_map_loss_weight: float = Field(1.0, ge=0)
    """lambda_orig: weight of the stage's `objective` beside the generator's loss."""
