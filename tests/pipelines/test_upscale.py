"""The command `upscale`: presets, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.pipelines.conftest import Ended
from tests.support.models import saved_model
from tests.support.tiny import MODEL
from training.inference.presets import Measure, Point, measured, write_curve
from training.settings.model import ModelSettings

Invoke = Callable[..., Ended]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a command that enlarges a photo by a model that does it bicubically."""
    model = saved_model(tmp_path / "model", ModelSettings.model_validate(MODEL), trained=False)
    Image.new("RGB", (8, 6), "red").save(tmp_path / "in.png")
    return ["upscale", "in.png", "-o", "out.png", "--model", str(model), "--scale", "2"]


def test_a_preset_needs_a_measured_curve(invoke: Invoke, words: list[str]) -> None:
    ended = invoke(*words, "--preset", "balanced")
    assert ended.code == 1 and "quality_curve.json is missing" in ended.err


def test_a_preset_chooses_what_is_not_given(
    invoke: Invoke, words: list[str], tmp_path: Path
) -> None:
    point = Point(scale=4, steps=3, color_strength=0.5, distortion=25, perception=0.3)
    psnr, lpips = Measure(metric="psnr_y", better="higher"), Measure(metric="l", better="lower")
    curve = measured(tmp_path / "model", [point], photos=5, distortion=psnr, perception=lpips)
    write_curve(tmp_path / "model", curve)
    ended = invoke(*words, "--preset", "detailed", "--color-strength", "1")
    assert ended.code == 0, ended.err
    assert "--steps 3, --color-strength 1 as given instead of 0.5" in ended.err
    xmp = Image.open(tmp_path / "out.png").info["xmp"]
    assert b'flowmapsr:steps="3"' in xmp and b'flowmapsr:colorStrength="1"' in xmp
