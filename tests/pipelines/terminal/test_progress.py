from __future__ import annotations

import pytest

from pipelines.terminal import progress
from pipelines.terminal.progress import show_progress


def test_without_a_terminal_lines_come_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with show_progress("shards", total=30, unit="shards", done=2) as bar:
        for _ in range(25):
            now[0] += 1
            bar.advance(note="x")
        bar.reach(30)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "shards: 11/30 shards  19 s left  x",
        "shards: 20/30 shards  10 s left  x",
        "shards: 30/30 shards",
    ]


def test_on_a_terminal_there_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with show_progress("shards", total=3, unit="shards") as bar:
        bar.advance(2, note="fast")
        bar.reach(3)
    out, err = capsys.readouterr()
    assert out == "" and "3/3 shards" in err
