"""The meter of a build against numbers computed by hand, and as a terminal shows it."""

from __future__ import annotations

import pytest

from pipelines.terminal.progress import BuildMeter, show_progress


def test_speed_and_time_left_are_those_of_this_run() -> None:
    now = [100.0]
    meter = BuildMeter(total=100, done=40, rejected=2, clock=lambda: now[0])
    assert meter.seconds_left is None
    now[0] += 10
    meter.add(planned=20, samples=15, bytes=3_000_000, rejected=5)
    assert (meter.done, meter.percent) == (60, 60.0)
    assert meter.seconds_left == 20.0  # 40 samples at 2 a second
    assert meter.note() == "1.5 samples/s, 300.0 kB/s, 7 rejected"


def test_nothing_to_make_is_all_done() -> None:
    assert BuildMeter(total=0).percent == 100.0


def test_finished_tasks_are_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    meter = BuildMeter(total=10, done=4, clock=lambda: now[0])
    with show_progress("dataset", total=meter.total, unit="samples", done=meter.done) as progress:
        now[0] = 2.0
        meter.add(planned=6, samples=6, bytes=1000, rejected=0)
        progress.reach(meter.done, note=meter.note())
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "dataset: 10/10 samples  3.0 samples/s, 500 bytes/s, 0 rejected\n"
