"""Files and folders: what is read and written, what is refused, and what bad input leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from datagen.errors import FlowmapsrError
from tests.support.models import saved_model
from tests.support.picture_files import png_bomb, saved
from tests.support.small_disk import DiskMaker
from training.inference.files import Job, UpscaleSettings, default_model, plan_jobs, upscale_all
from training.inference.upscaler import Upscaler
from training.settings.model import ModelSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, one of them in a subfolder, and a file that is not an image."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(folder / "a.jpg")
    Image.new("RGB", (8, 6), "blue").save(folder / "deep" / "b.gif")
    (folder / "notes.txt").write_text("x")
    return folder


def jobs_of(source: Path, output: Path, **options: bool) -> list[Job]:
    return plan_jobs(source, output, **{"overwrite": False, "skip_existing": False, **options})


def test_a_file_goes_to_a_file_or_into_a_folder(folder: Path, tmp_path: Path) -> None:
    photo = folder / "a.jpg"
    assert jobs_of(photo, tmp_path / "o.png") == [Job(photo, tmp_path / "o.png")]
    assert jobs_of(photo, tmp_path / "new") == [Job(photo, tmp_path / "new" / "a.jpg")]
    assert jobs_of(photo, tmp_path) == [Job(photo, tmp_path / "a.jpg")]


def test_a_folder_keeps_its_structure_and_unwritable_formats_become_png(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert [job.target for job in jobs_of(folder, out)] == [out / "a.jpg", out / "deep" / "b.png"]


def test_outputs_inside_the_folder_are_not_sources(folder: Path) -> None:
    (folder / "out").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "out" / "old.png")
    assert len(jobs_of(folder, folder / "out")) == 2


def test_an_existing_output_is_kept_unless_overwriting_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jpg").touch()
    with pytest.raises(FlowmapsrError, match="exists already.*--overwrite"):
        jobs_of(folder, tmp_path / "out")
    assert len(jobs_of(folder, tmp_path / "out", overwrite=True)) == 2
    assert [job.source.name for job in jobs_of(folder, tmp_path / "out", skip_existing=True)] == [
        "b.gif"
    ]


def test_what_would_lose_something_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match="the original itself"):
        jobs_of(folder / "a.jpg", folder, overwrite=True)
    Image.new("RGB", (8, 6)).save(folder / "deep" / "b.png")
    with pytest.raises(FlowmapsrError, match=r"both become .*b\.png"):
        jobs_of(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["o.xyz", "o.gif"])
def test_a_format_that_cannot_be_written_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(FlowmapsrError, match=r"cannot write .*\.png"):
        jobs_of(folder / "a.jpg", tmp_path / name)


def test_no_source_and_no_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match="does not exist"):
        jobs_of(tmp_path / "none.png", tmp_path / "o.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlowmapsrError, match="holds no images"):
        jobs_of(tmp_path / "empty", tmp_path / "o")


def test_a_missing_model_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlowmapsrError, match="flowmapsr demo --output demo-output"):
        default_model()
    (tmp_path / "demo-output" / "run").mkdir(parents=True)
    assert default_model() == "demo-output/run"


@pytest.fixture
def upscaler(tmp_path: Path, tiny_model: ModelSettings) -> Upscaler:
    """Enlarges by bicubic interpolation."""
    return Upscaler.from_pretrained(saved_model(tmp_path / "model", tiny_model, trained=False))


def test_a_bad_image_does_not_stop_the_others(
    folder: Path, tmp_path: Path, upscaler: Upscaler
) -> None:
    (folder / "0.png").touch()
    (folder / "1.png").write_bytes(png_bomb())
    whole = saved(Image.effect_noise((64, 64), 50), "JPEG")
    (folder / "2.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    report = upscale_all(jobs_of(folder, out), upscaler, UpscaleSettings(scale=2))
    assert report.failed == [
        (folder / "0.png", "empty file"),
        (folder / "1.png", "too large"),
        (folder / "2.jpg", "truncated"),
    ]
    assert [Image.open(path).size for path in report.written] == [(16, 12), (16, 12)]
    assert sorted(path.name for path in out.rglob("*.*")) == ["a.jpg", "b.png"]


@pytest.mark.parametrize("size", [(1, 1), (1, 2000)])
def test_any_size_is_upscaled(tmp_path: Path, upscaler: Upscaler, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "in.png")
    jobs = jobs_of(tmp_path / "in.png", tmp_path / "out.png")
    assert not upscale_all(jobs, upscaler, UpscaleSettings(scale=4)).failed
    result = Image.open(tmp_path / "out.png")
    assert result.size == (4 * size[0], 4 * size[1]) and result.getpixel((0, 0)) == (0, 128, 128)


def test_a_size_that_the_format_lacks_is_refused_before_the_work(
    tmp_path: Path, upscaler: Upscaler
) -> None:
    Image.new("L", (5000, 1)).save(tmp_path / "in.png")
    jobs = jobs_of(tmp_path / "in.png", tmp_path / "out.webp")
    report = upscale_all(jobs, upscaler, UpscaleSettings(scale=4))
    assert "20000x4 pixels are too many for WebP" in report.failed[0][1]


def test_a_full_disk_ends_the_work_and_leaves_nothing_torn(
    tmp_path: Path,
    upscaler: Upscaler,
    small_disk: DiskMaker,
    filled: Callable[[Path], AbstractContextManager[None]],
) -> None:
    photos, disk = tmp_path / "in", small_disk(1 << 20)
    photos.mkdir()
    for name in "ab":
        Image.effect_noise((64, 64), 50).save(photos / f"{name}.png")
    jobs, settings = jobs_of(photos, disk / "out"), UpscaleSettings(scale=2)
    upscale_all(jobs[:1], upscaler, settings)
    with filled(disk), pytest.raises(FlowmapsrError, match=r"b\.png.*free some space"):
        upscale_all(jobs[1:], upscaler, settings)
    assert [path.name for path in (disk / "out").iterdir()] == ["a.png"]


def test_how_it_was_made_is_in_the_file(tmp_path: Path, upscaler: Upscaler) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    exif[271] = "Maker"
    Image.new("RGB", (8, 8)).save(tmp_path / "in.jpg", exif=exif)
    jobs = jobs_of(tmp_path / "in.jpg", tmp_path / "out.jpg")
    report = upscale_all(jobs, upscaler, UpscaleSettings(scale=2, steps=3, strip_gps=True))
    result = Image.open(report.written[0])
    made = re.search(r"<rdf:Description[^>]*flowmapsr:.*?>", result.info["xmp"].decode())
    assert made is not None
    for words in ('scale="2"', 'steps="3"', 'seed="0"', 'colorFix="wavelet"', "stage warmup"):
        assert words in made[0]
    assert result.getexif()[271] == "Maker"
    assert not result.getexif().get_ifd(ExifTags.IFD.GPSInfo)
