"""What is evaluated: photos that are degraded, and given pairs, whose sizes say their scale."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.photos.source_file import Rejection
from tests.support.models import saved_model
from training.evaluation.evaluate import evaluate
from training.evaluation.photo_list import list_photos, scale_of, told
from training.evaluation.photos import DegradedPhoto, degraded_photos, read_photos
from training.inference.pictures.pixels import bicubic
from training.settings.evaluation import EvaluationSettings
from training.settings.model import ModelSettings

CHAIN = DegradationSettings(scale=(1, 8))
CAT = data.chelsea()[40:240, 60:360]


def _settings(folder: Path, **pairs: str) -> EvaluationSettings:
    given = {"hq": str(folder / "HR"), "lq": str(folder / "LR"), **pairs}
    return EvaluationSettings.model_validate({"pairs": given})


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _small(pixels: np.ndarray, scale: int) -> np.ndarray:
    height, width = (side // scale for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _read(settings: EvaluationSettings) -> tuple[list[DegradedPhoto], list[str]]:
    """All photos of all scales, and what is told."""
    given = list_photos(settings)
    left = list(given.left_out)
    photos = list(read_photos(given.photos, settings, CHAIN, on_left_out=left.append))
    return photos, told([*left, *(one for photo in photos for one in photo.remarks)])


def test_pairs_are_read_as_they_are_at_the_scale_of_their_sizes(tmp_path: Path) -> None:
    _save(tmp_path / "HR/a.png", CAT)
    _save(tmp_path / "LR/a.png", _small(CAT, 4))
    _save(tmp_path / "HR/more/b.png", CAT[:198, :298])  # no multiples of 4
    _save(tmp_path / "LR/more/b.png", _small(CAT[:196, :296], 4))
    _save(tmp_path / "HR/same.png", CAT)
    _save(tmp_path / "LR/same.png", cv2.GaussianBlur(CAT, (0, 0), 1))
    settings = _settings(tmp_path)
    assert list_photos(settings).scales == (1.0, 4.0)
    (same, a, b), notes = _read(settings)
    assert notes == []
    assert [one.name for one in (same, a, b)] == ["same.png", "a.png", "more/b.png"]
    assert np.array_equal(a.original, CAT) and np.array_equal(a.small, _small(CAT, 4))
    assert np.array_equal(b.original, CAT[:196, :296]) and b.small.shape == (49, 74, 3)
    assert same.size == (300, 200) and same.small.shape == CAT.shape
    assert [one.name for one in degraded_photos(settings, CHAIN, 4.0)] == ["a.png", "more/b.png"]


@pytest.mark.parametrize(
    ("hq", "lq", "scale"),
    [
        ((300, 200), (75, 50), 4.0),
        ((301, 201), (76, 51), 4.0),  # rounded up
        ((2040, 1356), (680, 452), 3.0),
        ((300, 200), (120, 80), 2.5),
        ((300, 200), (300, 200), 1.0),
    ],
)
def test_the_scale_of_a_pair(hq: tuple[int, int], lq: tuple[int, int], scale: float) -> None:
    assert scale_of(hq=hq, lq=lq) == scale


def test_pairs_that_cannot_be_used_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    for name in ("good", "alone", "odd", "broken", "wide"):
        _save(tmp_path / f"HR/{name}.png", CAT)
    for name in ("good", "odd", "broken", "nobody"):
        _save(tmp_path / f"LR/{name}.png", _small(CAT, 2))
    _save(tmp_path / "LR/wide.png", _small(CAT, 2)[:40])
    _save(tmp_path / "LR/odd.png", _small(data.astronaut()[:200, :300], 2))
    (tmp_path / "LR/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    photos, notes = _read(_settings(tmp_path))
    assert [photo.name for photo in photos] == ["good.png", "odd.png"]
    hr, lr = tmp_path / "HR", tmp_path / "LR"
    alone, nobody, broken, wide, odd = notes
    assert alone == f"{hr}/alone.png: no LQ for this HQ"
    assert nobody == f"{lr}/nobody.png: no HQ for this LQ"
    assert broken == f"{hr}/broken.png: corrupt (LQ {lr}/broken.png)"
    assert wide == f"{hr}/wide.png: sides of the pair differ beyond the scale (300x200 and 150x40)"
    assert odd.startswith(f"{hr}/odd.png: measured, but it may be a pair of different pictures (")
    with pytest.raises(FlowmapsrError, match=r"no file of .*HR \(5 photos\) matches"):
        list_photos(_settings(tmp_path, match="suffix", lq_suffix="_LR4"))


def test_references_of_16_bits_and_in_printing_colors_are_told(tmp_path: Path) -> None:
    deep = CAT.astype(np.uint16) * 257
    for name in ("deep.png", "deeper.tif"):
        cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
    Image.fromarray(CAT).convert("CMYK").save(tmp_path / "print.tif")
    _save(tmp_path / "plain.png", CAT)
    settings = EvaluationSettings(photos=str(tmp_path), scales=(2.0,))
    photos, notes = _read(settings)
    assert [photo.name for photo in photos] == ["deep.png", "deeper.tif", "plain.png", "print.tif"]
    assert np.abs(photos[0].original.astype(int) - CAT).max() <= 1
    assert notes == [
        f"{tmp_path}/deep.png: has 16 bits a color, measured with 8, and 1 more",
        f"{tmp_path}/print.tif: is CMYK, measured in sRGB",
    ]


def test_a_photo_that_cannot_be_read_is_left_out_or_ends_it(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", CAT)
    (tmp_path / "b.png").write_bytes(b"text")
    Image.fromarray(CAT[:9, :9]).save(tmp_path / "c.png")
    settings = EvaluationSettings(photos=str(tmp_path))
    photos, notes = _read(settings)
    assert [photo.name for photo in photos] == ["a.png"] * 2
    assert notes == [
        f"{tmp_path}/b.png: not an image",
        f"{tmp_path}/c.png: too small to evaluate at scale 4 (9x9)",
        f"{tmp_path}/c.png: too small to evaluate at scale 8 (9x9)",
    ]
    with pytest.raises(FlowmapsrError, match=r"b\.png: not an image; take it out"):
        list(degraded_photos(settings, CHAIN, 4.0))
    assert told([Rejection("a", "x (1)"), Rejection("b", "x (2)")]) == ["a: x (1), and 1 more"]


def test_pictures_without_originals_are_enlarged_at_each_scale(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", CAT)
    _save(tmp_path / "deep/b.png", CAT[:101])
    settings = EvaluationSettings.model_validate(
        {"no_reference": str(tmp_path), "scales": [2, 1.5]}
    )
    photos, notes = _read(settings)
    assert notes == [] and [photo.name for photo in photos] == ["a.png", "deep/b.png"] * 2
    assert all(photo.original is None for photo in photos)
    assert [photo.size for photo in photos] == [(600, 400), (600, 202), (450, 300), (450, 152)]
    assert np.array_equal(photos[0].small, CAT)


def test_one_kind_of_photos_is_given() -> None:
    pairs = {"hq": "/a", "lq": "/b"}
    for given, why in (
        ({"photos": None}, "give one of photos, pairs, no_reference"),
        (
            {"photos": "/a", "no_reference": "/b"},
            "photos and no_reference are given; leave all but",
        ),
        ({"pairs": pairs, "no_reference": "/b"}, "pairs and no_reference are given"),
        ({"pairs": pairs, "scales": [4]}, "leave scales out"),
    ):
        with pytest.raises(ValueError, match=why):
            EvaluationSettings.model_validate(given)


def test_pairs_are_evaluated_scale_by_scale(tmp_path: Path, tiny_model: ModelSettings) -> None:
    for name, scale in (("a", 2), ("b", 2), ("c", 4)):
        _save(tmp_path / f"HR/{name}.png", CAT)
        _save(tmp_path / f"LR/{name}.png", _small(CAT, scale))
    _save(tmp_path / "HR/alone.png", CAT)
    model = saved_model(tmp_path / "model", tiny_model, trained=False)
    settings = _settings(tmp_path).model_copy(update={"steps": (1,)})
    found = evaluate(str(model), settings, lq_folder=str(tmp_path / "lq"))
    assert [(row.method, row.scale, row.photos) for row in found.rows] == [
        ("bicubic", 2, 2),
        ("flowmapsr", 2, 2),
        ("bicubic", 4, 1),
        ("flowmapsr", 4, 1),
    ]
    assert found.notes == (f"{tmp_path}/HR/alone.png: no LQ for this HQ",)
    enlarged = bicubic(_small(CAT, 4), (300, 200))
    assert found.rows[2].psnr == pytest.approx(peak_signal_noise_ratio(CAT, enlarged))
    written = (tmp_path / "lq").rglob("*.png")
    assert sorted(str(one.relative_to(tmp_path / "lq")) for one in written) == [
        "x2/a.png",
        "x2/b.png",
        "x4/c.png",
    ]
