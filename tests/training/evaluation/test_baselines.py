"""Baselines: interpolation, and pictures of another system, however they were left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from datagen.errors import FlowmapsrError
from training.evaluation.baselines import baseline_method, write_lq
from training.evaluation.measure import Method
from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.photos import DegradedPhoto
from training.evaluation.scores import Scores, score
from training.run_dir.records import EvaluationRow
from training.settings.evaluation import (
    PRESETS,
    EvaluationSettings,
    Interpolation,
    Pictures,
)


def _photos(*names: str) -> list[DegradedPhoto]:
    found = []
    for index, name in enumerate(names):
        original = data.chelsea()[40 * index : 40 * index + 60, 100:180]
        small = Image.fromarray(original).resize((40, 30), Image.Resampling.BOX)
        found.append(DegradedPhoto(name, original, np.asarray(small)))
    return found


def _scored(photos: list[DegradedPhoto], method: Method) -> tuple[Scores, tuple[str, ...]]:
    scores = score(photos, [method], 2.0, find_metrics((), PRESETS["plain"]))
    return scores, scores.notes


def _row(scores: Scores) -> EvaluationRow:
    (row,) = scores.rows
    return row


def _theirs(folder: Path) -> Pictures:
    return Pictures(kind="pictures", name="theirs", folder=str(folder))


def test_another_systems_pictures_are_scored_like_ones_own(tmp_path: Path) -> None:
    """Written out, enlarged by somebody else, and read back: exactly what that one is worth."""
    photos = _photos("a.jpg", "more/b.png")
    write_lq(str(tmp_path / "lq"), 2.0, photos)
    lanczos = baseline_method(Interpolation(kind="lanczos"), 2.0)
    for lq in (tmp_path / "lq/x2").rglob("*.png"):
        theirs = tmp_path / "out/x2" / lq.relative_to(tmp_path / "lq/x2").with_suffix(".tif")
        theirs.parent.mkdir(parents=True, exist_ok=True)
        Image.open(lq).resize((80, 60), Image.Resampling.LANCZOS).save(theirs)
    (tmp_path / "out/x4").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "out/x4/a.png")  # of another scale
    expected, _ = _scored(photos, lanczos)
    found, notes = _scored(photos, baseline_method(_theirs(tmp_path / "out"), 2.0))
    assert notes == ()
    assert _row(found).values == _row(expected).values
    assert [one.values for one in found.pictures] == [one.values for one in expected.pictures]
    assert (_row(found).method, _row(found).steps) == ("theirs", 0)
    direct, _ = _scored(photos, baseline_method(_theirs(tmp_path / "out/x2"), 2.0))
    assert _row(direct).values == _row(expected).values


def test_missing_damaged_and_resized_pictures_are_told(tmp_path: Path) -> None:
    photos = _photos("a.png", "b.png", "c.png", "d.png")
    Image.fromarray(photos[0].original).save(tmp_path / "a.png")
    Image.fromarray(photos[1].original).resize((160, 120)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found, notes = _scored(photos, baseline_method(_theirs(tmp_path), 2.0))
    assert [one.photo for one in found.pictures] == ["a.png", "b.png"]
    assert found.pictures[0].values["psnr_rgb"] == float("inf")
    assert notes[0] == "theirs at x2: resized, having another size: b.png from 160x120 to 80x60"
    assert notes[1].startswith(f"theirs at x2: unreadable: {tmp_path}/c.png (")
    assert notes[2] == f"theirs at x2: no picture in {tmp_path} of d.png"
    nothing, notes = _scored(_photos("x.png", "y.png"), baseline_method(_theirs(tmp_path), 2.0))
    assert nothing.rows == () and nothing.pictures == ()
    assert notes == (f"theirs at x2: no picture in {tmp_path} of x.png, and 1 more",)


def test_a_folder_without_pictures_and_names_that_clash_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlowmapsrError, match="no photo in it"):
        baseline_method(_theirs(tmp_path / "empty"), 2.0)
    with pytest.raises(FlowmapsrError, match="nowhere"):
        baseline_method(_theirs(tmp_path / "nowhere"), 2.0)
    with pytest.raises(FlowmapsrError, match=r"a\.jpg and a\.png would get one LQ picture"):
        write_lq(str(tmp_path / "lq"), 2.0, _photos("a.jpg", "a.png"))
    for names in (("theirs", "theirs"), ("bicubic",)):
        baselines = [{"kind": "pictures", "name": name, "folder": "/x"} for name in names]
        with pytest.raises(ValueError, match="name"):
            EvaluationSettings.model_validate({"photos": "/photos", "baselines": baselines})
