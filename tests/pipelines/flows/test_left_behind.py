"""A build on its own Prefect server and Ray cluster, ended by kill -9 and by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.eventually import eventually
from tests.support.processes import kill_tree


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "code", "seconds", "home"),
    [("KILL", -9, 30, None), ("INT", 130, 15, "/proc/none")],  # the second cannot be written
)
def test_nothing_outlives_the_command_or_holds_its_output(
    number: str,
    code: int,
    seconds: float,
    home: str | None,
    tmp_path: Path,
    build_words: Callable[..., list[str]],
) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *build_words(tmp_path / "set", "workers=1")],
        env={
            **os.environ,
            "HOME": home or str(tmp_path),
            "PREFECT_HOME": str(tmp_path / ".prefect"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        eventually(lambda: any((tmp_path / "set").glob("shards/*/*.json")), command, seconds=120)
        started = psutil.Process(command.pid).children(recursive=True)
        titles = [" ".join(process.cmdline()) for process in started]
        assert any("prefect" in title for title in titles)
        assert any("ray::" in title for title in titles)
        start = time.monotonic()
        if number == "INT":  # as a terminal does, to all of the group
            os.killpg(command.pid, signal.SIGINT)
        else:
            command.kill()
        said, _ = command.communicate(timeout=seconds)
        assert command.returncode == code, said
        left = seconds - (time.monotonic() - start)
        assert not psutil.wait_procs(started, timeout=left)[1]
        assert "Traceback" not in said and "Matplotlib created" not in said
    finally:
        kill_tree(command)
