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
    lines = ProgressLines(settings, on_gpus=True, clock=lambda: now)
    lines.first_step(1, 34.2)
    for now in (2.0, SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LINES + 2.0):  # noqa: B007
        lines.show(PROGRESS, last=False)
    lines.show(PROGRESS.model_copy(update={"step": 6000}), last=True)
    assert caplog.messages == [
        "warmup: step 1 of 6000, the first after 34.2 s",
        "warmup: step 420 of 6000, loss/total 0.4123, 64.0 images/s, 2% waiting for data, "
        "41.2 GB of GPU memory, 0:05:49 left",
        "warmup: step 6000 of 6000, loss/total 0.4123, 64.0 images/s, 2% waiting for data, "
        "41.2 GB of GPU memory",
    ]


def test_the_first_worker_prints_each_stages_first_and_last_step(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    stages = [{**WARMUP, "name": name, "steps": 3} for name in ("first", "second")]
    workers = start_workers(run_recipe(tmp_path / "run", stages=stages), tmp_path)
    output, _ = workers.communicate(timeout=280)
    assert workers.returncode == 0, output
    lines = [line for line in output.splitlines() if " of 3, " in line]
    patterns = [
        pattern.format(name)
        for name in ("first", "second")
        for pattern in (
            r"{}: step 1 of 3, the first after \d+\.\d s",
            r"{}: step 3 of 3, loss/total -?\d+\.\d{{4}}, \d+\.\d images/s, \d+% waiting for data, "
            r"\d+\.\d GB of memory",
        )
    ]
    assert len(lines) == len(patterns), output
    assert all(map(re.fullmatch, patterns, lines)), lines
