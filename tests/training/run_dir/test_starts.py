"""The history of a stage's starts: complete, or an error that names the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from datagen.records import UnreadableRecord
from training.run_dir.best_effort import append_lines_atomically
from training.run_dir.paths import StagePaths
from training.run_dir.records import WorkerGroup
from training.run_dir.stacks import StackHeader, stall_reason
from training.run_dir.starts import Start, append_line, read_starts

WORKERS = WorkerGroup(hosts=("a",), devices=("cpu",), on_gpus=False)


def _start(step: int) -> Start:
    return Start(time=1.0, workers=WORKERS, step=step)


@pytest.fixture
def stage(tmp_path: Path) -> StagePaths:
    stage = StagePaths(tmp_path, "warmup")
    for step in (0, 5):
        append_line(stage.starts, _start(step))
    return stage


def test_an_incomplete_last_line_is_no_start_and_the_next_one_replaces_it(
    stage: StagePaths,
) -> None:
    with stage.starts.open("a") as file:
        file.write('{"time": 17')
    assert [start.step for start in read_starts(stage)] == [0, 5]
    append_line(stage.starts, _start(9))
    assert [start.step for start in read_starts(stage)] == [0, 5, 9]


def test_a_corrupt_line_is_named(stage: StagePaths) -> None:
    lines = stage.starts.read_text().splitlines()
    lines.insert(1, '{"written": "by another version"}')
    stage.starts.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UnreadableRecord, match=r"starts\.jsonl: line 2 .*remove"):
        read_starts(stage)


@pytest.mark.parametrize("left", ["", "x", "x" * 200_000, "a\nb\n" + "x" * 200_000])
def test_lines_are_appended_after_the_last_complete_one(tmp_path: Path, left: str) -> None:
    path = tmp_path / "lines"
    path.write_text(left)
    append_lines_atomically(path, "new\n")
    assert path.read_text() == left[: left.rfind("\n") + 1] + "new\n"


def test_the_reason_of_a_stall_is_that_of_the_worker_that_hung(tmp_path: Path) -> None:
    def traces(name: str, first_line: str) -> Path:
        path = tmp_path / name
        path.write_text(f"{first_line}\n\nThread 1\n")
        return path

    def header(rank: int, *, stalled: bool) -> str:
        reason = "stuck" if stalled else "another worker was stuck"
        one = StackHeader(rank=rank, world_size=2, stalled=stalled, reason=reason)
        return one.model_dump_json()

    other = traces("0.txt", header(0, stalled=False))
    hung = traces("1.txt", header(1, stalled=True))
    frozen = traces("2.txt", "Timeout (0:00:10)!")
    assert stall_reason([other, hung, frozen]) == "worker 1 of 2: stuck"
    assert stall_reason([frozen, other]) == "worker 0 of 2: another worker was stuck"
    assert stall_reason([frozen]) == "Timeout (0:00:10)!"
