"""Settings of the losses: all objectives, guidance and the perceptual loss.

Defaults are FlowMapSR's where the paper gives a number.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from datagen.records import Location, NonNegativeRange, Probability, Settings
from training.settings.elir import LatentConsistency


class Guidance(Settings):
    """Classifier-free guidance with a positive and a negative prompt (FlowMapSR eq. 5 and 15)."""

    negative_fraction: Probability = 0.1
    """p_neg: how often a sample is a negative one. Its target is the negative latent, its prompt c-
    and its strength 1."""
    strength: NonNegativeRange = (1.0, 3.5)
    """Bounds of w of all other samples, drawn uniformly; two equal numbers fix it."""

    @property
    def mean_strength(self) -> float:
        """Default at inference, and all that a model without `guidance_conditioning` can learn."""
        return sum(self.strength) / 2


class FlowMatching(Settings):
    """L_FM alone (eq. 3): the warm-up."""

    kind: Literal["flow_matching"] = "flow_matching"
    time_grid_levels: int = Field(7, ge=0, le=20)
    """K: times lie on grids of 2^k intervals, k = 0..K."""
    guidance: Guidance | None = None
    """Trains with negatives and strengths; null trains with positives only."""


class SelfDistillation(Settings):
    """L_FM + L_SD in one batch (eq. 12), in one of the three formulations of a flow map."""

    kind: Literal["self_distillation"] = "self_distillation"
    formulation: Literal["shortcut", "eulerian", "lagrangian"] = "shortcut"
    """SSD (eq. 22), ESD (eq. 21) or LSD (eq. 20)."""
    lsd_velocity: Literal["model", "conditional"] = "model"
    """First term of the Lagrangian target: the model's own velocity at the end of the step, or v as
    in the paper, which is biased (one step then gives the blurred mean)."""
    time_grid_levels: int = Field(7, ge=1, le=20)
    """K: times lie on grids of 2^k intervals, k = 0..K."""
    flow_matching_fraction: Probability = 0.75
    """Part of every batch that trains L_FM; the rest trains L_SD."""
    guidance: Guidance | None = None
    """Trains with negatives and strengths; null trains with positives only."""

    @property
    def differentiates(self) -> bool:
        """Whether the target holds a derivative of the model."""
        return self.formulation != "shortcut"


FlowMapObjectiveSettings = FlowMatching | SelfDistillation
ObjectiveSettings = Annotated[
    FlowMapObjectiveSettings | LatentConsistency, Field(discriminator="kind")
]


class NoPerceptual(Settings):
    """No perceptual loss; HQ pixels are not read."""

    kind: Literal["none"] = "none"


class PatchPerceptual(Settings):
    """lambda(t) * distance(D(x_t - t u), HQ) on one random patch."""

    strength: float = Field(10.0, gt=0)
    """lambda at t = 0; it falls to 0 along 1 - t."""
    patch_size: int = Field(512, gt=0, multiple_of=8)
    """Side of the patch, pixels; smaller images are used whole."""


class Charbonnier(PatchPerceptual):
    """sqrt(difference^2 + epsilon^2), averaged: a pixel loss that needs no weights."""

    kind: Literal["charbonnier"] = "charbonnier"
    epsilon: float = Field(1e-3, gt=0)
    """Where the loss turns from quadratic to linear, in units of [-1, 1]."""


class Lpips(PatchPerceptual):
    """LPIPS on VGG-16 features (the paper's)."""

    kind: Literal["lpips"] = "lpips"
    weights: Location | None = None
    """Safetensors file with the VGG-16 features and the LPIPS linear layers; null downloads both
    once from where torchvision and lpips publish them."""


PerceptualSettings = Annotated[NoPerceptual | Charbonnier | Lpips, Field(discriminator="kind")]
