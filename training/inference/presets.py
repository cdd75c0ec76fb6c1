"""A measured curve of distortion against perception, in a model's folder, and the presets that are
points of it: `faithful`, `balanced`, `detailed`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.weight_files import read_json
from datagen.records import FrozenModel, read_record, to_json
from training.weights.model_folder import CONFIG, CURVE

Preset = Literal["faithful", "balanced", "detailed"]
_OF_MODEL = ("recipe_digest", "stage", "step")
"""What tells the model of a curve."""
_CHOOSE = "leave --preset out and choose --steps, --lora-scale or --guidance"


class Measure(FrozenModel):
    """A metric of the curve."""

    metric: str = Field(min_length=1)
    """With its convention, such as `psnr_y` or `lpips_alex`."""
    better: Literal["higher", "lower"]


class Point(FrozenModel):
    """What some settings give, as means over the photos; None is the model's own."""

    scale: float = Field(ge=1)
    steps: int = Field(ge=1)
    lora_scale: float | None = Field(None, ge=0)
    guidance: float | None = Field(None, ge=0)
    color_strength: Annotated[float, Field(ge=0, le=1)] | None = None
    distortion: FiniteFloat
    perception: FiniteFloat


class QualityCurve(FrozenModel):
    """`quality_curve.json`; what it was measured with are fields of `config.json`."""

    format_version: Literal[1] = 1
    recipe_digest: str
    stage: str
    step: int | None = None
    photos: int = Field(ge=1)
    """How many were restored."""
    distortion: Measure
    perception: Measure
    points: tuple[Point, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _measured_once(self) -> QualityCurve:
        settings = [
            (one.scale, one.steps, one.lora_scale, one.guidance, one.color_strength)
            for one in self.points
        ]
        if len(set(settings)) < len(settings):
            raise ValueError("two points have the same settings")
        return self

    def point(self, preset: Preset, scale: float) -> Point:
        """The point of a preset at the measured scale that is nearest to `scale`.

        `faithful` has the least distortion, `detailed` the best perception. `balanced` is nearest
        to a point with both, in units of what these two differ by.
        """
        nearest = min((one.scale for one in self.points), key=lambda at: _apart(at, scale))
        there = [one for one in self.points if one.scale == nearest]
        faithful, detailed = min(there, key=self._losses), min(there, key=self._perceived)
        if preset == "faithful" or faithful == detailed:
            return faithful
        if preset == "detailed":
            return detailed
        best = self._losses(faithful)[0], self._losses(detailed)[1]
        worst = self._losses(detailed)[0], self._losses(faithful)[1]

        def from_best(one: Point) -> float:
            parts = zip(self._losses(one), best, worst, strict=True)
            return math.hypot(*((loss - low) / (high - low) for loss, low, high in parts))

        return min(there, key=from_best)

    def _losses(self, one: Point) -> tuple[float, float]:
        """Distortion and perception, where less is better."""
        signs = [1 if m.better == "lower" else -1 for m in (self.distortion, self.perception)]
        return signs[0] * one.distortion, signs[1] * one.perception

    def _perceived(self, one: Point) -> tuple[float, float]:
        distortion, perception = self._losses(one)
        return perception, distortion


def write_curve(folder: Path, curve: QualityCurve) -> None:
    """Puts a curve into the folder of the model that it was measured with."""
    storage.write_bytes(str(folder / CURVE), to_json(curve))


def read_curve(folder: Path) -> QualityCurve:
    """The curve of a model folder.

    Raises:
        FlowmapsrError: there is none, or it is corrupt, or of another model.
    """
    path = folder / CURVE
    curve = read_record(path, QualityCurve, remedy=f"measure it again, or {_CHOOSE}")
    if curve is None:
        raise FlowmapsrError(
            f"--preset: no quality curve was measured for this model ({path} is missing); {_CHOOSE}"
        )
    config = read_json(folder / CONFIG)
    for name in _OF_MODEL:
        if getattr(curve, name) != config.get(name):
            raise FlowmapsrError(
                f"{path} was measured with another model ({name}={getattr(curve, name)}, and the "
                f"model has {config.get(name)}): measure it again, or {_CHOOSE}"
            )
    return curve


def measured(
    folder: Path,
    points: Sequence[Point],
    *,
    photos: int,
    distortion: Measure,
    perception: Measure,
) -> QualityCurve:
    """A curve of the model in this folder."""
    config = read_json(folder / CONFIG)
    return QualityCurve(
        **{name: config.get(name) for name in _OF_MODEL},
        photos=photos,
        distortion=distortion,
        perception=perception,
        points=tuple(points),
    )


@dataclass(frozen=True)
class Knobs:
    """What a preset chooses and a user may; None is the model's own."""

    steps: int | None = None
    lora_scale: float | None = None
    guidance: float | None = None
    color_strength: float | None = None

    def filled(self, point: Point) -> Knobs:
        """These, and for each that is None that of the point."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return Knobs(
            **{name: getattr(point, name) if v is None else v for name, v in given.items()}
        )

    def described(self, preset: Preset, point: Point, curve: QualityCurve) -> str:
        """What a preset means beside these, for a person."""
        taken, kept = [], []
        for name in (one.name for one in fields(self)):
            given, chosen = getattr(self, name), getattr(point, name)
            option = f"--{name.replace('_', '-')}"
            if given is None and chosen is not None:
                taken.append(f"{option} {chosen:g}")
            elif given is not None:
                instead = "" if chosen is None else f" instead of {chosen:g}"
                kept.append(f"{option} {given:g} as given{instead}")
        said = f"preset {preset}: {', '.join([*taken, *kept])}"
        return f"{said} (measured at x{point.scale:g} on {curve.photos} photos)"


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other))
