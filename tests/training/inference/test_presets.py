"""Points of a measured curve: which one a preset is, and what of a curve's file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datagen.errors import FlowmapsrError
from tests.support.models import saved_model
from training.inference.presets import (
    CURVE,
    Knobs,
    Measure,
    Point,
    Preset,
    QualityCurve,
    measured,
    read_curve,
    write_curve,
)
from training.inference.upscaler import Upscaler
from training.settings.model import ModelSettings

PSNR = Measure(metric="psnr_y", better="higher")
LPIPS = Measure(metric="lpips_alex", better="lower")
POINTS = [
    Point(scale=4, steps=1, distortion=26.0, perception=0.40),
    Point(scale=4, steps=2, distortion=25.6, perception=0.25),
    Point(scale=4, steps=2, guidance=1.5, distortion=24.8, perception=0.21),
    Point(scale=4, steps=4, lora_scale=1.5, distortion=24.0, perception=0.20),
    Point(scale=4, steps=3, distortion=24.0, perception=0.40),  # others are better in both
    Point(scale=8, steps=3, distortion=21.0, perception=0.50),
]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: ModelSettings) -> Path:
    return saved_model(tmp_path / "model", tiny_model, trained=False)


def curve_of(folder: Path, points: list[Point] = POINTS) -> QualityCurve:
    return measured(folder, points, photos=10, distortion=PSNR, perception=LPIPS)


@pytest.mark.parametrize(
    ("preset", "scale", "index"),
    [
        ("faithful", 4, 0),
        ("balanced", 4, 1),
        ("detailed", 4, 3),
        ("balanced", 5.6, 1),  # nearer to x4 than to x8, as factors
        ("balanced", 5.7, 5),
        ("faithful", 16, 5),
    ],
)
def test_a_preset_is_a_point_at_the_nearest_scale(
    folder: Path, preset: Preset, scale: float, index: int
) -> None:
    write_curve(folder, curve_of(folder))
    assert read_curve(folder).point(preset, scale) == POINTS[index]


def test_of_equal_points_the_one_that_is_better_otherwise_is_taken(folder: Path) -> None:
    points = [
        Point(scale=2, steps=1, distortion=30, perception=0.3),
        Point(scale=2, steps=2, distortion=30, perception=0.2),
        Point(scale=2, steps=3, distortion=29, perception=0.2),
    ]
    curve = curve_of(folder, points)
    for preset in ("faithful", "balanced", "detailed"):
        assert curve.point(preset, 2).steps == 2  # type: ignore[arg-type]


def test_what_is_given_wins_and_is_said(folder: Path) -> None:
    curve, given = curve_of(folder), Knobs(steps=3, color_strength=0.0)
    assert given.filled(POINTS[3]) == Knobs(3, 1.5, None, 0.0)
    assert given.described("detailed", POINTS[3], curve) == (
        "preset detailed: --lora-scale 1.5, --steps 3 as given instead of 4, "
        "--color-strength 0 as given (measured at x4 on 10 photos)"
    )


def test_a_model_without_a_curve_is_told_so(folder: Path) -> None:
    with pytest.raises(FlowmapsrError, match=rf"{CURVE} is missing\); leave --preset out and"):
        read_curve(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": []}, "points: Tuple should have at least 1"),
        ({"points": 2 * [POINTS[0].model_dump()]}, "two points have the same settings"),
        ({"points": [{**POINTS[0].model_dump(), "steps": 0}]}, r"points\.0\.steps.*not 0"),
        ({"points": [{**POINTS[0].model_dump(), "distortion": "NaN"}]}, "finite number"),
        ({"format_version": 2}, "format_version"),
        ({"photos": 0}, "photos"),
        ({"stage": "distill"}, r"another model \(stage=distill, and the model has warmup\)"),
        ({"recipe_digest": "1"}, r"another model \(recipe_digest=1"),
    ],
)
def test_a_wrong_curve_is_refused_with_its_fault(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    content = curve_of(folder).model_dump(mode="json")
    (folder / CURVE).write_text(json.dumps({**content, **change}))
    with pytest.raises(FlowmapsrError, match=rf"{CURVE} .*{message}.*leave --preset out"):
        read_curve(folder)


def test_a_curve_does_not_make_another_model(folder: Path) -> None:
    before = Upscaler.from_pretrained(folder).digest()
    write_curve(folder, curve_of(folder))
    assert Upscaler.from_pretrained(folder).digest() == before
