"""Settings of an evaluation: what `flowmapsr evaluate` restores, and how."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from datagen.records import Settings


class EvaluationSettings(Settings):
    """Held-out photos are degraded by the dataset's own chain at fixed scales, then restored."""

    photos: str
    """Folder of held-out photos."""
    scales: tuple[Annotated[float, Field(ge=1)], ...] = Field((4.0, 8.0), min_length=1)
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4), min_length=1)
    seed: int = Field(0, ge=0)
    lora_scale: float | None = Field(None, ge=0)
    """Strength of an adversarial model's LoRA; the model's own when not given."""
    guidance: float | None = Field(None, ge=0)
    """Guidance strength w of a model that takes it as an input; the model's own when not given."""
