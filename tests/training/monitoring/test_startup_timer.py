"""Phases of the startup timer, also across processes."""

from __future__ import annotations

import time

import psutil
import pytest

from training.monitoring.startup_timer import StartupTimer, process_started


def test_phases_add_up_from_the_start() -> None:
    timer = StartupTimer(100.0)
    timer.mark("command", at=103.0)
    timer.mark("workers", at=110.5)
    assert timer.seconds == {"command": 3.0, "workers": 7.5}


def test_a_machine_whose_clock_is_ahead_gives_no_negative_phase() -> None:
    timer = StartupTimer(100.0)
    timer.mark("command", at=99.0)
    assert timer.seconds == {"command": 0.0}


def test_a_process_is_timed_from_its_start() -> None:
    assert process_started() == psutil.Process().create_time()
    timer = StartupTimer(process_started())
    timer.mark("imports")
    age = time.time() - process_started()
    assert timer.seconds["imports"] == pytest.approx(age, abs=1.0)
