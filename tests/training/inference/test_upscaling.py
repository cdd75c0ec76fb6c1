from __future__ import annotations

import io
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from datagen.errors import FlowmapsrError
from training.inference.files import Job, default_model, encode, plan_jobs, upscale_all
from training.inference.upscaler import Upscaler


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


@pytest.mark.parametrize(
    ("suffix", "mode", "expected"),
    [
        (".png", "RGBA", "RGBA"),
        (".png", "L", "L"),
        (".webp", "RGBA", "RGBA"),
        (".jpg", "RGBA", "RGB"),
        (".jpg", "LA", "L"),
        (".JPG", "L", "L"),
        (".tiff", "RGB", "RGB"),
    ],
)
def test_formats_keep_what_they_can(suffix: str, mode: str, expected: str) -> None:
    image = Image.open(io.BytesIO(encode(Image.new(mode, (5, 4)), suffix)))
    assert (image.mode, image.size) == (expected, (5, 4))


def test_transparency_becomes_white_in_jpeg() -> None:
    image = Image.open(io.BytesIO(encode(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), ".jpg")))
    assert min(image.getpixel((4, 4))) > 250


class TwiceAsLarge:
    """Replaces a trained model; the files are real."""

    def upscale_file(self, data: bytes, *, scale: float, **options: object) -> Image.Image:
        if data == b"":
            raise FlowmapsrError("empty file")
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return image.resize((round(image.width * scale), round(image.height * scale)))


def test_a_bad_image_does_not_stop_the_others(folder: Path, tmp_path: Path) -> None:
    (folder / "0.png").touch()
    out = tmp_path / "out"
    report = upscale_all(jobs_of(folder, out), cast(Upscaler, TwiceAsLarge()), scale=2, steps=1)
    assert report.failed == [(folder / "0.png", "empty file")]
    assert [Image.open(path).size for path in report.written] == [(16, 12), (16, 12)]
    assert sorted(path.name for path in out.rglob("*.*")) == ["a.jpg", "b.png"]
