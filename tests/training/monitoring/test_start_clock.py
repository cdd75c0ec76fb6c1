"""The phases of a start add up, and those of other processes count."""

from __future__ import annotations

import time

import psutil
import pytest

from training.monitoring.startup_timer import StartupTimer, process_began


def test_phases_add_up_from_the_beginning() -> None:
    clock = StartupTimer(100.0)
    clock.mark("command", at=103.0)
    clock.mark("workers", at=110.5)
    assert clock.metrics() == {
        "start/command_seconds": 3.0,
        "start/workers_seconds": 7.5,
        "start/seconds": 10.5,
    }


def test_a_clock_of_another_machine_that_goes_ahead_makes_no_negative_phase() -> None:
    clock = StartupTimer(100.0)
    clock.mark("command", at=99.0)
    assert clock.seconds == {"command": 0.0}


def test_a_process_counts_from_its_own_beginning() -> None:
    assert process_began() == psutil.Process().create_time()
    clock = StartupTimer(process_began())
    clock.mark("imports")
    age = time.time() - process_began()
    assert clock.seconds["imports"] == pytest.approx(age, abs=1.0)
