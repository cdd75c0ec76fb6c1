"""What is shown of photos while they are upscaled."""

from __future__ import annotations

import pytest

from pipelines.terminal import progress
from pipelines.terminal.photo_progress import PhotoProgress
from pipelines.terminal.progress import show_progress
from training.inference import under_way
from training.inference.batch import UpscaleReport
from training.inference.under_way import Meter, PhotoShare, UnderWay


def test_one_photo_shows_its_share_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with show_progress("upscale", total=1, unit="images") as bar:
        shown = PhotoProgress(bar, done=0)
        for share in (0.0, 0.2, 0.4, 0.6, 0.8):
            shown.under_way(UnderWay(("s3://photos/a.jpg",), share, share, share))
            now[0] += 6
        shown.ended("s3://photos/a.jpg", UpscaleReport(megapixels=60, seconds=30))
    assert capsys.readouterr().err.splitlines() == [
        "upscale: 0/1 images  18 s left  0.40 megapixels/s  40% of a.jpg",
        "upscale: 0/1 images  6 s left  0.80 megapixels/s  80% of a.jpg",
        "upscale: 1/1 images  2.00 megapixels/s  a.jpg",
    ]


def test_a_photo_that_is_written_beside_the_next_takes_nothing_back() -> None:
    reached: list[float] = []
    bar = progress.Progress(lambda done, note: reached.append(done), done=2)
    shown = PhotoProgress(bar, done=2)
    shown.under_way(UnderWay(("a.png",), 0.5, 0.5, 1))
    shown.under_way(UnderWay(("b.png",), 0.5, 1.5, 1))
    shown.ended("a.png", UpscaleReport())
    shown.ended("b.png", UpscaleReport())
    assert reached == [2.5, 3.5, 3.5, 4]


def test_photos_on_several_workers_show_their_common_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weighted by megapixels; a share that was lost with its worker is taken back."""
    now = [0.0]
    monkeypatch.setattr(under_way.time, "monotonic", lambda: now[0])
    told: list[tuple[float, str]] = []
    shown = PhotoProgress(progress.Progress(lambda *at: told.append(at), done=0), done=0)
    meter = Meter(shown.under_way)
    now[0] = 10
    meter.reached({"in/a.png": PhotoShare(0.5, 30), "in/b.png": PhotoShare(0.25, 10)})
    meter.end(30)
    shown.ended("in/a.png", UpscaleReport(megapixels=30, seconds=10))
    meter.reached({"in/b.png": PhotoShare(0.75, 10)})
    meter.reached({})
    assert told == [
        (0.75, "1.75 megapixels/s  44% of 2 photos"),
        (1.0, "3.00 megapixels/s  a.png"),
        (1.75, "3.75 megapixels/s  75% of b.png"),
        (1.0, "3.00 megapixels/s"),
    ]
