"""Scores of methods, a row for each photo; what is missing is told, and the rest is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from datagen.errors import FlowmapsrError
from training.evaluation.kept_pictures import KeptPictures
from training.evaluation.measure import Method
from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.photos import DegradedPhoto
from training.evaluation.results import require_place, write_results
from training.evaluation.scores import score
from training.run_dir.records import Evaluation, PictureRow
from training.settings.evaluation import PRESETS, EvaluationSettings


def _photo(name: str, original: np.ndarray) -> DegradedPhoto:
    small = Image.fromarray(original).resize((original.shape[1] // 2, original.shape[0] // 2))
    return DegradedPhoto(name, original, np.asarray(small))


def _repeated(photo: DegradedPhoto) -> np.ndarray:
    return photo.small.repeat(2, axis=0).repeat(2, axis=1)


def test_a_photo_without_a_value_is_named_and_all_others_are_measured(tmp_path: Path) -> None:
    cat = data.chelsea()
    face = cat[60:140, 100:180]
    photos = [_photo("cat.png", cat[:192, :288]), _photo("face.png", face)]
    metrics = find_metrics(("psnr_y", "niqe"), PRESETS["plain"])
    scores = score(photos, [Method("nearest", 0, _repeated)], 2.0, metrics)
    first, second = scores.pictures
    assert (first.photo, second.photo) == ("cat.png", "face.png")
    assert set(first.values) == {"psnr_rgb", "ssim_rgb", "psnr_y", "niqe"}
    assert set(second.values) == {"psnr_rgb", "ssim_rgb", "psnr_y"}
    assert scores.notes == (
        "niqe at x2: face.png: 80x80 holds fewer than two of its blocks of 96 pixels",
    )
    more = [*photos, _photo("nose.png", face[:20])]
    twice = score(more, [Method(name, 0, _repeated) for name in ("one", "two")], 2.0, metrics)
    (note,) = twice.notes
    assert note.endswith("blocks of 96 pixels, and 1 more")
    (row,) = scores.rows
    assert row.psnr == pytest.approx((first.values["psnr_rgb"] + second.values["psnr_rgb"]) / 2)
    assert row.values["niqe"] == first.values["niqe"]
    assert set(row.more) == {"psnr_y", "niqe"}


def test_results_are_read_back_even_of_equal_pictures(tmp_path: Path) -> None:
    photo = _photo("cat.png", data.chelsea()[:64, :64])
    perfect = Method("perfect", 1, lambda photo: photo.original)
    scores = score([photo], [perfect], 2.0, find_metrics((), PRESETS["plain"]))
    found = Evaluation(rows=scores.rows, pictures=scores.pictures, seconds=scores.seconds)
    write_results(str(tmp_path), EvaluationSettings(photos="/photos"), found)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [PictureRow.model_validate_json(line) for line in lines] == list(scores.pictures)
    assert scores.pictures[0].values["psnr_rgb"] == float("inf")
    (timing,) = (tmp_path / "timings.jsonl").read_text().splitlines()
    assert json.loads(timing) == {
        "photo": "cat.png", "method": "perfect", "scale": 2, "steps": 1,
        "seconds": scores.seconds[0],
    }  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rows"][0]["ssim"] == pytest.approx(1)


def test_results_are_kept_up_to_a_limit_and_restored_once_more_above_it() -> None:
    cat = data.chelsea()
    photos = [_photo("a.png", cat[:64, :64]), _photo("b.png", cat[64:128, :64])]
    restored = []

    def restore(photo: DegradedPhoto) -> np.ndarray:
        restored.append(photo.name)
        return _repeated(photo)

    method = KeptPictures(most_bytes=photos[0].original.nbytes).of(Method("ours", 1, restore))
    pictures = [method.make(photo).picture for photo in (*photos, *photos)]
    assert restored == ["a.png", "b.png", "b.png"]
    for again, photo in zip(pictures[2:], photos, strict=True):
        assert np.array_equal(again, _repeated(photo))
    other = KeptPictures().of(Method("ours", 2, restore))
    other.make(photos[0])
    other.make(photos[0])
    assert len(restored) == 4


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    report = tmp_path / "new/report.html"
    require_place(str(report))
    assert list(report.parent.iterdir()) == []
    with pytest.raises(FlowmapsrError, match="new is a folder; name a file"):
        require_place(str(report.parent))
    (tmp_path / "file").touch()
    with pytest.raises(FlowmapsrError, match="file/report.html"):
        require_place(str(tmp_path / "file/report.html"))
