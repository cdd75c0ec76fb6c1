"""Settings of an evaluation: which photos it restores, at which scales and in how many steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from datagen.records import Location, Settings

Precision = Literal["auto", "fp32", "bf16"]


class EvaluationSettings(Settings):
    """Held-out photos are degraded by the chain of the dataset at fixed scales, then restored."""

    photos: Location = Field(examples=["/path/to/held-out-photos"])
    """Folder of held-out photos."""
    scales: tuple[Annotated[float, Field(ge=1)], ...] = Field((4.0, 8.0), min_length=1)
    """Factors by which photos are reduced and enlarged again; 1 keeps their size."""
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4), min_length=1)
    """Numbers of network evaluations for each photo."""
    seed: int = Field(0, ge=0)
    """Seed of the degradations, and of the noise that a model restores with."""
    lora_scale: float | None = Field(None, ge=0)
    """Strength of the LoRA of an adversarial model; null takes the model's default."""
    guidance: float | None = Field(None, ge=0)
    """Guidance strength w of a model that takes it as an input; null takes the model's default."""
    precision: Precision = "auto"
    """Of the network; `auto` is bf16 on a GPU that computes in it, else fp32."""
