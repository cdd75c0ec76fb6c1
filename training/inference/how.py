"""What may be asked for when a picture is enlarged."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import TypedDict

from training.inference.watch import OnProgress
from training.settings.evaluation import ColorFix


class How(TypedDict, total=False):
    """How a picture is enlarged; what is left out is as suits the model."""

    steps: int | None
    """Network evaluations, 1 or more."""
    color_fix: ColorFix | None
    """How the picture gets the colors of the small one, as `fix_colors` says."""
    color_strength: float
    """Share of the color change that is undone, 0 to 1; all of it when left out."""


class Options(How, total=False):
    on_progress: OnProgress | None
    """Called with the share that is done, 0 to 1; what it raises ends the work."""
    cancel: Event | None
    """Once it is set, by any thread, the work ends before its next tile: `UpscalingStopped`."""


@dataclass(frozen=True)
class Decided:
    """A `How` with what suits the model where nothing was asked for."""

    steps: int
    color_fix: ColorFix
    color_strength: float

    @classmethod
    def of(cls, how: How, *, usual_steps: int, usual_color_fix: ColorFix) -> Decided:
        return cls(
            steps=how.get("steps") or usual_steps,
            color_fix=how.get("color_fix") or usual_color_fix,
            color_strength=how.get("color_strength", 1.0),
        )
