"""`--log-format json`: every line on stderr and in the logs of workers is an object."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import Ended
from training.monitoring.json_log import FORMAT
from training.monitoring.worker_log import FirstWorkerLog, crash_of
from training.run_dir.paths import RunPaths

ALL = """
import logging, os, subprocess, warnings
from datagen.errors import FlowmapsrError
from pipelines.terminal.doing import doing
from pipelines.terminal.process_edge import process_edge
from pipelines.terminal.progress import show_progress
from training.monitoring.json_log import at_work_on

with process_edge(as_json=True) as out:
    logging.getLogger("datagen.io").info("two\\nlines")
    at_work_on(run="/run", stage="warmup", dataset="/set")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("training.x").exception("it failed")
    logging.getLogger("some.library").warning("deprecated")
    warnings.warn("old", stacklevel=1)
    os.write(2, b"from C\\n{torn\\n")
    subprocess.run(["sh", "-c", "echo child >&2"])
    print("to stdout, by a library")
    with show_progress("warmup", total=3, unit="steps") as progress:
        progress.reach(3, note="fast")
    raise FlowmapsrError("no\\nmore")
"""


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def run_python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_whatever_is_written_to_stderr_becomes_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT, "json")
    ended = run_python(ALL)
    assert ended.returncode == 1 and json.loads(ended.stdout) == {"error": "no\nmore"}
    found = {one["message"].splitlines()[0]: one for one in objects(ended.stderr)}
    assert all({"time", "level", "run", "stage", "dataset"} <= one.keys() for one in found.values())
    assert found["two"]["message"] == "two\nlines"
    assert (found["two"]["run"], found["two"]["stage"]) == (None, None)
    failed = found["it failed"]
    assert "ZeroDivisionError" in failed["traceback"] and failed["level"] == "error"
    assert (failed["run"], failed["stage"], failed["dataset"]) == ("/run", "warmup", "/set")
    assert found["deprecated"]["level"] == "warning"
    assert {"from C", "{torn", "child", "to stdout, by a library"} <= found.keys()
    assert any("UserWarning: old" in message for message in found)
    progress = found["warmup: 3/3 steps  fast"]
    assert (progress["event"], progress["done"], progress["total"]) == ("progress", 3, 3)
    assert found["no"]["level"] == "error"


@pytest.mark.parametrize("words", [("--log-format", "json"), ("--log-format=json",)])
def test_wrong_usage_is_an_object_too(
    flowmapsr: Callable[..., Ended], words: tuple[str, ...]
) -> None:
    ended = flowmapsr("train", "demo", "--no-such", *words)
    assert ended.code == 2
    assert [one["message"] for one in objects(ended.err)] == ["No such option: --no-such"]


def test_the_option_wins_over_the_variable(invoke: Callable[..., Ended]) -> None:
    ended = invoke("train", "nothing", "--log-format", "text", env={FORMAT: "json"})
    assert ended.err.startswith("there is no recipe 'nothing'")


WORKER = """
import faulthandler, logging, sys
from pathlib import Path
from training.monitoring.json_log import at_work_on
from training.monitoring.worker_log import PROGRESS, keep_log
keep_log(Path(sys.argv[1]), 0)
at_work_on(run=sys.argv[1], stage="warmup")
logging.getLogger("training.data").warning("loaded\\n 3 tensors")
PROGRESS.info("10 of 20 steps")
logging.getLogger("some_library").warning("deprecated")
if len(sys.argv) > 2:
    faulthandler._sigsegv()
"""


def test_logs_of_workers_are_objects_that_the_command_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORMAT, "json")
    log = FirstWorkerLog(tmp_path)
    run_python(WORKER, str(tmp_path), "crash")
    lines = objects(RunPaths(tmp_path).worker_log(0).read_text())
    assert [one["message"] for one in lines] == [
        "loaded\n 3 tensors", "10 of 20 steps", "deprecated"
    ]  # fmt: skip
    assert {(one["run"], one["stage"]) for one in lines} == {(str(tmp_path), "warmup")}
    assert list(log.new_lines()) == [(30, "loaded\n 3 tensors")]
    assert crash_of(tmp_path, 0) == "Segmentation fault"
    run_python(WORKER, str(tmp_path))
    assert crash_of(tmp_path, 0) is None, "of the start before"
