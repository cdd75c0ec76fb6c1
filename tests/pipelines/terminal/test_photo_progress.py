"""What is shown of photos while they are upscaled."""

from __future__ import annotations

import pytest

from datagen.photos.source_file import SourceFile
from pipelines.terminal import progress
from pipelines.terminal.photo_progress import PhotoProgress
from pipelines.terminal.progress import show_progress
from training.inference import under_way
from training.inference.batch import UpscaleReport
from training.inference.jobs import Job
from training.inference.under_way import Meter, PhotoShare, UnderWay


def test_one_photo_shows_its_share_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with show_progress("upscale", total=1, unit="images") as bar:
        shown = PhotoProgress(bar, total=1, done=0)
        for share in (0.0, 0.2, 0.4, 0.6, 0.8):
            shown.under_way(UnderWay(("s3://photos/a.jpg",), share, share, share))
            now[0] += 6
        shown.under_way(UnderWay((), 0, 1, 2))
        shown.ended("s3://photos/a.jpg", UpscaleReport(megapixels=60, seconds=30))
    assert capsys.readouterr().err.splitlines() == [
        "upscale: 0/1 images  18 s left  0.40 megapixels/s  40% of a.jpg",
        "upscale: 0/1 images  6 s left  0.80 megapixels/s  80% of a.jpg",
        "upscale: 1/1 images  2.00 megapixels/s  a.jpg",
    ]


def test_photos_count_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two earlier ones are done; a share that was lost with its worker is taken back."""
    now = [0.0]
    monkeypatch.setattr(under_way.time, "monotonic", lambda: now[0])
    told: list[tuple[float, int, str]] = []
    bar = progress.Progress(lambda *at: told.append(at), done=2)
    shown = PhotoProgress(bar, total=4, done=2)
    jobs = [
        Job(SourceFile(f"in/{name}", size, ""), name) for name, size in (("a", 600), ("b", 200))
    ]
    meter = Meter(jobs, shown.under_way)
    now[0] = 10
    meter.reached({"in/a": PhotoShare(0.5, 30), "in/b": PhotoShare(0.25, 10)})
    meter.end("in/a", 30)
    shown.ended("in/a", UpscaleReport(megapixels=30, seconds=10))
    meter.reached({"in/b": PhotoShare(0.75, 10)})
    meter.reached({})
    meter.end("in/b", 10)
    assert told == [
        (2 + 2 * 350 / 800, 2, "1.75 megapixels/s  44% of 2 photos"),
        (2 + 2 * 650 / 800, 2, "3.25 megapixels/s  25% of b"),
        (2 + 2 * 650 / 800, 3, "3.00 megapixels/s  a"),
        (2 + 2 * 750 / 800, 3, "3.75 megapixels/s  75% of b"),
        (2 + 2 * 600 / 800, 3, "3.00 megapixels/s"),
        (4, 3, "4.00 megapixels/s"),
    ]
