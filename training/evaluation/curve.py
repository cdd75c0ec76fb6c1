"""The quality curve of a model, from an evaluation that swept its steps and knobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datagen.errors import FlowmapsrError
from training.evaluation.variants import Variant
from training.inference.presets import Measure, Point, QualityCurve, measured, write_curve
from training.run_dir.records import Evaluation
from training.settings.benchmark import CurveSettings


def write_curves(
    found: Evaluation, variants: Sequence[Variant], settings: CurveSettings
) -> list[Path]:
    """Writes the curve of each model into its folder; where they are.

    Raises:
        FlowmapsrError: a metric could not be measured, or a file cannot be written.
    """
    written = []
    for folder in dict.fromkeys(one.folder for one in variants):
        names = [one.name for one in variants if one.folder == folder]
        write_curve(Path(folder), curve_of(found, names, Path(folder), settings))
        written.append(Path(folder))
    return written


def curve_of(
    found: Evaluation, names: Sequence[str], folder: Path, settings: CurveSettings
) -> QualityCurve:
    """The curve of a model, whose rows have these names.

    Raises:
        FlowmapsrError: a metric could not be measured.
    """
    distortion = _measure(found, (settings.distortion,))
    perception = _measure(found, settings.perception)
    rows = [row for row in found.rows if row.method in names and row.steps]
    points = [
        Point(
            scale=row.scale,
            steps=row.steps,
            lora_scale=row.lora_scale,
            guidance=row.guidance,
            distortion=row.values[distortion.metric],
            perception=row.values[perception.metric],
        )
        for row in rows
    ]
    photos = min(row.photos or 1 for row in rows)
    return measured(folder, points, photos=photos, distortion=distortion, perception=perception)


def _measure(found: Evaluation, wanted: Sequence[str]) -> Measure:
    """The first of these metrics that every method has, under the name that says its convention."""
    shared = [name for name in found.better if all(name in row.values for row in found.rows)]
    for name in wanted:
        for full in shared:
            if full == name or full.startswith(f"{name}_") or _other_luma(full, name):
                return Measure(metric=full, better=found.better[full])
    raise FlowmapsrError(
        f"no quality curve: {' and '.join(wanted)} could not be measured on every photo; give "
        "metric_weights, or another metric as curve.distortion or curve.perception"
    )


def _other_luma(full: str, name: str) -> bool:
    """`psnr_yiq` is `psnr_y` by another convention."""
    return name.endswith("_y") and full.startswith(f"{name}iq")
