"""Signals that ask a process to end are taken once, and a lost terminal does not disturb it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datagen.io.end_signals import END_SIGNALS

COMMAND = """
import sys, time
from datagen.io.end_signals import on_end_signal
asked = []
on_end_signal(lambda: asked.append(1))
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.3)
print("saving", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write(str(len(asked)))
"""


@pytest.mark.parametrize("number", END_SIGNALS)
def test_the_first_signal_counts_and_those_after_it_do_no_harm(
    number: signal.Signals, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", COMMAND, str(tmp_path / "saved")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for each in (number, number, signal.SIGTERM):
        process.send_signal(each)
    process.communicate(timeout=30)
    assert process.returncode == 0 and (tmp_path / "saved").read_text() == "1"


def test_a_terminal_that_is_gone_asks_to_end_and_may_still_be_written_to(tmp_path: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", COMMAND, str(tmp_path / "saved")])
    assert os.read(terminal, 100).startswith(b"ready")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "saved").read_text() == "1"


def test_under_nohup_a_lost_connection_changes_nothing(tmp_path: Path) -> None:
    words = ["nohup", sys.executable, "-c", COMMAND, str(tmp_path / "saved")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    process.stdout.close()
