"""Files and folders: what is read and written, what is refused, and what bad input leaves."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

import pytest
from PIL import ExifTags, Image

from datagen.errors import FlowmapsrError
from datagen.io import local, storage
from tests.support.models import saved_model
from tests.support.picture_files import png_bomb, saved
from tests.support.s3 import FaultyS3
from tests.support.small_disk import DiskMaker
from training.inference import batch
from training.inference.batch import upscale_all
from training.inference.files import (
    ReadPhoto,
    UpscaleSettings,
    default_model,
    settings_digest,
    warn_of_scale,
)
from training.inference.jobs import Job, plan_jobs
from training.inference.made import remove_leftovers, unfinished
from training.inference.pictures.decode import Picture
from training.inference.under_way import UnderWay
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


def jobs_of(source: Path | str, output: Path | str, **options: bool) -> list[Job]:
    chosen = {"overwrite": False, "skip_existing": False, **options}
    return plan_jobs(str(source), str(output), **chosen).jobs


def targets_of(source: Path | str, output: Path, **options: bool) -> list[str]:
    return [str(Path(job.target).relative_to(output)) for job in jobs_of(source, output, **options)]


def test_a_file_goes_to_a_file_or_into_a_folder(folder: Path, tmp_path: Path) -> None:
    photo = folder / "a.jpg"
    assert targets_of(photo, tmp_path / "o.png") == ["."]
    assert targets_of(photo, tmp_path / "new") == targets_of(photo, tmp_path) == ["a.jpg"]


def test_a_folder_keeps_its_structure_and_unwritable_formats_become_png(
    folder: Path, tmp_path: Path
) -> None:
    with tarfile.open(folder / "more.tar", "w") as archive:
        for name in ("x/c.jpg", "/d.jpg", "../outside.jpg"):
            archive.add(folder / "a.jpg", name)
    expected = ["a.jpg", "deep/b.png", "more.tar/d.jpg", "more.tar/x/c.jpg"]
    assert targets_of(folder, tmp_path / "out") == expected
    assert targets_of(f"{folder}/deep/..", tmp_path / "out") == expected
    assert targets_of(folder / "more.tar", tmp_path / "out") == ["d.jpg", "x/c.jpg"]


@pytest.mark.parametrize("place", ["", "out", "deep"])
def test_an_output_inside_the_photos_is_refused(folder: Path, place: str) -> None:
    with pytest.raises(FlowmapsrError, match="inside the photos' folder"):
        jobs_of(folder, folder / place)


def test_an_existing_output_is_kept_unless_overwriting_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jpg").touch()
    with pytest.raises(FlowmapsrError, match="exists already.*--overwrite"):
        jobs_of(folder, tmp_path / "out")
    assert len(jobs_of(folder, tmp_path / "out", overwrite=True)) == 2
    assert targets_of(folder, tmp_path / "out", skip_existing=True) == ["deep/b.png"]


def test_what_would_lose_something_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match="the original itself"):
        jobs_of(folder / "a.jpg", folder, overwrite=True)
    Image.new("RGB", (8, 6)).save(folder / "deep" / "b.png")
    with pytest.raises(FlowmapsrError, match=r"both become .*b\.png"):
        jobs_of(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["o.xyz", "o.gif", "o.bmp"])
def test_a_format_that_cannot_be_written_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(FlowmapsrError, match=r"cannot write .*\.png"):
        jobs_of(folder / "a.jpg", tmp_path / name)


def test_no_source_and_no_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match="does not exist"):
        jobs_of(tmp_path / "none.png", tmp_path / "o.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlowmapsrError, match="no photo in it"):
        jobs_of(tmp_path / "empty", tmp_path / "o")


def test_a_place_that_may_not_be_written_is_told_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))  # as for root
    with pytest.raises(FlowmapsrError, match=rf"nothing can be written in {tmp_path};"):
        jobs_of(folder, tmp_path / "new" / "out")


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
    empty, bomb, torn = report.failed
    assert empty == (str(folder / "0.png"), "empty file")
    assert torn == (str(folder / "2.jpg"), "truncated")
    assert bomb[0] == str(folder / "1.png")
    assert re.search(r"too large.* 179 megapixels .*--max-megapixels", bomb[1])
    assert [Image.open(path).size for path in report.written] == [(16, 12), (16, 12)]
    assert sorted(path.name for path in out.rglob("[!.]*.???")) == ["a.jpg", "b.png"]
    assert report.megapixels == pytest.approx(2 * 16 * 12 / 1e6)


def test_a_photo_larger_than_the_usual_limit_is_read_where_that_is_asked_for(
    tmp_path: Path, upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (tmp_path / "in.png").write_bytes(saved(Image.effect_noise((50, 50), 50)))

    def failed(**settings: Any) -> list[tuple[str, str]]:
        target = tmp_path / "out.png"
        jobs = jobs_of(tmp_path / "in.png", target, overwrite=True)
        return upscale_all(jobs, upscaler, UpscaleSettings(scale=1, **settings)).failed

    assert "too large" in failed()[0][1]
    assert failed(max_megapixels=200) == []
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_the_next_photo_is_read_while_the_model_works(
    folder: Path, tmp_path: Path, upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, read, told = batch.read_file, Event(), []

    def noted(job: Job, settings: UpscaleSettings) -> ReadPhoto:
        photo = plain(job, settings)
        if job is jobs[1]:
            read.set()
        return photo

    def waiting(*args: Any, **options: Any) -> Picture:
        assert read.wait(60)
        return Upscaler.upscale_picture(upscaler, *args, **options)

    monkeypatch.setattr(batch, "read_file", noted)
    monkeypatch.setattr(upscaler, "upscale_picture", waiting)
    jobs = jobs_of(folder, tmp_path / "out")
    report = upscale_all(
        jobs, upscaler, UpscaleSettings(scale=2), on_done=lambda photo, _: told.append(photo)
    )
    assert told == [job.source.uri for job in jobs]
    assert report.written == [job.target for job in jobs] and not report.failed


def test_files_tell_the_share_of_the_one_under_way(
    folder: Path, upscaler: Upscaler, tmp_path: Path
) -> None:
    told: list[UnderWay] = []
    jobs = jobs_of(folder, tmp_path / "out")
    upscale_all(jobs, upscaler, UpscaleSettings(scale=2, steps=3), on_progress=told.append)
    whole, before = sum(job.source.bytes for job in jobs), 0
    for job in jobs:
        of_photo = [at for at in told if at.photos == (job.source.uri,)]
        assert [at.share for at in of_photo] == [0, 0.25, 0.5, 0.75]  # three steps and the rest
        done = [(before + at.share * job.source.bytes) / whole for at in of_photo]
        assert [at.done for at in of_photo] == done
        before += job.source.bytes
    assert told[-1].photos == () and told[-1].done == 1
    speeds = [at.speed for at in told]
    assert speeds[0] == 0 and min(speeds[1:]) > 0


def run(folder: Path | str, out: Path | str, upscaler: Upscaler, **options: Any) -> list[str]:
    """As the command does; the names of what was written."""
    overwrite = options.pop("overwrite", False)
    settings = UpscaleSettings(**{"scale": 2, **options})
    digest = settings_digest(upscaler, settings)
    jobs = unfinished(jobs_of(folder, out, overwrite=overwrite), digest, overwrite=overwrite)
    report = upscale_all(jobs, upscaler, settings, digest=digest)
    assert not report.failed
    return [PurePosixPath(path).name for path in report.written]


def test_the_same_command_makes_what_is_missing_or_changed(
    folder: Path, tmp_path: Path, upscaler: Upscaler
) -> None:
    out = tmp_path / "out"
    assert run(folder, out, upscaler) == ["a.jpg", "b.png"]
    (folder / "a.jpg").touch()  # another time, the same content
    assert run(folder, out, upscaler) == []
    (out / "a.jpg").unlink()
    assert run(folder, out, upscaler) == ["a.jpg"]
    assert run(folder, out, upscaler, steps=upscaler.restorer.usual_steps) == []  # as before
    assert run(folder, out, upscaler, scale=3) == ["a.jpg", "b.png"]
    assert Image.open(out / "a.jpg").size == (24, 18)
    Image.new("RGB", (8, 6), "green").save(folder / "a.jpg")
    assert run(folder, out, upscaler, scale=3) == ["a.jpg"]
    assert run(folder, out, upscaler, scale=3, overwrite=True) == ["a.jpg", "b.png"]


def test_a_result_that_somebody_changed_is_not_replaced(
    folder: Path, tmp_path: Path, upscaler: Upscaler
) -> None:
    out = tmp_path / "out"
    run(folder, out, upscaler)
    Image.new("RGB", (16, 12)).save(out / "a.jpg")
    with pytest.raises(FlowmapsrError, match=r"a\.jpg was changed since it was made; use --over"):
        run(folder, out, upscaler, scale=3)
    assert run(folder, out, upscaler, scale=3, overwrite=True) == ["a.jpg", "b.png"]


@pytest.mark.parametrize("writes", [0, 1])
def test_a_kill_between_result_and_record_is_no_obstacle(
    folder: Path,
    tmp_path: Path,
    upscaler: Upscaler,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
) -> None:
    out, left = tmp_path / "out", iter(range(writes))
    run(folder, out, upscaler)

    def killed(uri: str, data: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        local.write_bytes(uri, data)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(storage, "write_bytes", killed)
        run(folder, out, upscaler, scale=3)
    assert run(folder, out, upscaler, scale=3) == ["a.jpg", "b.png"]
    assert [Image.open(out / name).size for name in ("a.jpg", "deep/b.png")] == [(24, 18)] * 2


@pytest.mark.parametrize("name", ["a.jpg", ".flowmapsr/a.jpg.json", ".flowmapsr/cluster"])
def test_what_a_killed_run_left_unfinished_is_removed_by_the_next(
    folder: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "out" / name
    code = (
        "import os, signal, sys; from datagen.io import local\n"
        "with local.temporary(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    other = target.with_name(f".other.jpg.{12 * 'a'}.tmp")  # of another command
    other.touch()
    left = {path for path in target.parent.glob(".*.tmp") if path != other}
    for path in (*left, other):
        os.utime(path, (0, 0))
    with local.temporary(str(target)) as living:  # of one that is at work
        os.utime(living.name, (0, 0))
        remove_leftovers(jobs_of(folder, tmp_path / "out"))
        there = set(target.parent.glob(".*.tmp"))
        assert len(left) == 1 and there == {other, Path(living.name)}


def test_photos_and_results_may_be_in_s3(
    folder: Path, tmp_path: Path, upscaler: Upscaler, faulty_s3: FaultyS3
) -> None:
    s3 = f"s3://{faulty_s3.bucket}"
    for name in ("a.jpg", "deep/b.gif"):
        storage.write_bytes(f"{s3}/in/{name}", (folder / name).read_bytes())
    assert run(f"{s3}/in", f"{s3}/out", upscaler) == ["a.jpg", "b.png"]
    assert run(f"{s3}/in", f"{s3}/out", upscaler) == []
    assert Image.open(io.BytesIO(storage.read_bytes(f"{s3}/out/deep/b.png"))).size == (16, 12)
    assert run(f"{s3}/in", tmp_path / "out", upscaler) == ["a.jpg", "b.png"]
    with pytest.raises(FlowmapsrError, match="inside the photos' folder"):
        jobs_of(f"{s3}/in", f"{s3}/in/out")
    jobs = jobs_of(f"{s3}/in/a.jpg", f"{s3}/single.webp")
    assert upscale_all(jobs, upscaler, UpscaleSettings(scale=2)).written == [f"{s3}/single.webp"]


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
    assert [path.name for path in (disk / "out").iterdir() if path.is_file()] == ["a.png"]


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


@pytest.mark.parametrize(("scale", "told"), [(8, False), (9, True)])
def test_a_scale_beyond_what_the_model_saw_is_told(
    upscaler: Upscaler, caplog: pytest.LogCaptureFixture, scale: int, told: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_scale(upscaler, scale)
    assert ("scales from 1 to 8, not for 9" in caplog.text) is told
