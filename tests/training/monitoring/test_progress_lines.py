"""The lines that a launcher without a display of its own prints."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tests.support.launch import start_workers
from tests.support.tiny import WARMUP, RunMaker
from training.monitoring.progress_lines import SECONDS_BETWEEN_LINES, ProgressLines
from training.run_dir.records import StageProgress
from training.settings.stage import StageSettings

PROGRESS = StageProgress(
    stage="warmup",
    step=420,
    steps=6000,
    images_per_second=64.0,
    headline="loss/total",
    headline_value=0.41234,
    updated=0.0,
    checkpoint_step=0,
    checkpoint_time=0.0,
    worker_hours=0.0,
    data_wait_fraction=0.02,
    memory_gb=41.23,
)


def test_a_line_says_where_a_stage_is_every_few_seconds_and_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "training")
    now = 0.0
    settings = StageSettings.model_validate({**WARMUP, "steps": 6000})
    lines = ProgressLines(settings, clock=lambda: now)
    for now in (2.0, SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LINES + 2.0):  # noqa: B007
        lines.show(PROGRESS, last=False)
    lines.show(PROGRESS.model_copy(update={"step": 6000}), last=True)
    assert caplog.messages == [
        "warmup: 420/6000 steps  0:05:49 left  loss/total 0.4123, 64.0 images/s, "
        "2% waiting for data, 41.2 GB of memory",
        "warmup: 6000/6000 steps  loss/total 0.4123, 64.0 images/s, "
        "2% waiting for data, 41.2 GB of memory",
    ]


def test_torchrun_prints_stages_steps_and_what_the_training_came_to(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stages = [{**WARMUP, "name": name, "steps": 3} for name in ("first", "second")]
    stages[1]["init_from"] = "first"
    workers = start_workers(run_recipe(tmp_path / "run", stages=stages), tmp_path)
    output, _ = workers.communicate(timeout=280)
    assert workers.returncode == 0, output
    of_each = (
        r"{}: begins, 3 steps; workers: 2 on \S+",
        r"{}: step 1 after \d+\.\d s",
        r"{}: 3/3 steps  loss/total -?\d+\.\d{{4}}, \d+\.\d images/s, \d+% waiting for data, "
        r"\d+\.\d GB of memory",
        r"{}: all 3 steps",
    )
    expected = [
        r"training in \S+/run, workers: 2; first 3 steps, second 3 steps",
        *(line.format("first") for line in of_each),
        r"loaded +\d+ tensors .*",
        *(line.format("second") for line in of_each),
        r"trained \S+/run",
        r"  first: all 3 steps; loss/total \S+",
        r"  second: all 3 steps; loss/total \S+",
        r"  metrics  MLflow run \w+ of 'tests' in sqlite:///\S+; table of the stages: \S+\.md",
        r"  logs     \S+/run/logs",
    ]
    found = [line for line in output.splitlines() if any(re.fullmatch(e, line) for e in expected)]
    assert len(found) == len(expected) and all(map(re.fullmatch, expected, found)), output
    kept = (tmp_path / "run" / "logs" / "worker-0.log").read_text()
    assert "second: all 3 steps" in kept and (tmp_path / "run" / "logs" / "worker-1.log").is_file()
