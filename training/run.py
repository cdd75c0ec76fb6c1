"""Trains the stages of a resolved recipe: `torchrun --nproc_per_node 2 -m training.run
recipe.json`.

Works the same under `deepspeed` and `torchrun`, with no Ray and no Prefect. To resume, run the same
command again. SIGTERM, SIGHUP, SIGUSR1, SIGXCPU and Ctrl-C save a checkpoint and end.
`recipe.json` is what `flowmapsr train RECIPE
... --dry-run` prints.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from datagen.io.lock import LockLostError
from datagen.io.open_files import raise_limit
from datagen.records import FROM_USER
from training.distributed import launched_as, worker_device
from training.engine.engine import start_distributed
from training.monitoring.json_log import FORMAT, at_work_on, chosen, tell
from training.monitoring.shown import Shown
from training.monitoring.startup_timer import startup
from training.monitoring.watchdog import connection_timeout
from training.monitoring.worker_log import keep_log
from training.preflight import check_run
from training.prepare import prepare_run
from training.run_dir.lock import run_lock
from training.run_dir.paths import run_of
from training.run_dir.records import StageRecord
from training.run_dir.stop_signal import StopSignal
from training.settings.recipe import TrainingRecipe
from training.settings.yaml_text import parse_yaml
from training.stage import run_stage
from training.system_protocol import SystemOf
from training.systems import system_of as default_system_of
from training.tracking.parent_run import parent_run
from training.tracking.summary.ending import ending_lines
from training.tracking.unsent import unsent_events, unsent_lines

log = logging.getLogger("training.run")
"""By this name although this file is what is run."""


def run_stages(
    recipe: TrainingRecipe,
    *,
    stop_requested: Callable[[], bool],
    stalled: Callable[[str], None] | None = None,
    system_of: SystemOf = default_system_of,
) -> list[StageRecord] | None:
    """All stages in order on this worker; None when a stop was requested first.

    Args:
        stalled: called with the reason before the watchdog ends this process.
    """
    startup.mark("imports")
    raise_limit()
    records = []
    for stage in recipe.stages:
        at_work_on(run=recipe.output, stage=stage.name, dataset=recipe.datasets_label)
        record = run_stage(
            recipe, stage.name, stop_requested=stop_requested, stalled=stalled, system_of=system_of
        )
        if record is None:
            return None
        records.append(record)
        startup.restart(time.time())
    return records


def _train_first(
    recipe: TrainingRecipe,
    stop: StopSignal,
    *,
    take_over: bool,
    newer_data: bool,
    redo_later: bool,
    system_of: SystemOf,
) -> list[StageRecord] | None:
    """All stages on the first worker, which holds the run's folder and its MLflow run."""
    check_run(recipe, newer_data=newer_data)
    stages = ", ".join(f"{stage.name} {stage.steps} steps" for stage in recipe.stages)
    log.info("training in %s, workers: %d; %s", recipe.output, launched_as()[1], stages)
    with run_lock(recipe, take_over=take_over) as lock:
        stop.clear()
        prepare_run(recipe, newer_data=newer_data, redo_later=redo_later)
        _join(recipe, stop)

        def stop_requested() -> bool:
            try:
                lock.raise_if_lost()
            except LockLostError as error:
                tell(str(error), level="error")
                # And its launcher ends the others: an orderly end would write into a folder that is
                # another training's now.
                os._exit(1)
            return stop()

        with parent_run(recipe) as parent:
            records = run_stages(
                recipe, stop_requested=stop_requested, stalled=parent.stalled, system_of=system_of
            )
    if records is not None:
        log.info("trained %s", recipe.output)
        for line in ending_lines(Path(recipe.output), recipe):
            log.info("%s", line)
    for line in unsent_lines(unsent_events(recipe), again="run the same command again"):
        tell(line)
    return records


def _join(recipe: TrainingRecipe, stop: StopSignal) -> None:
    """Waits for all workers; the first one comes when it holds the run folder, and until then no
    other may touch it: it may be another training's."""
    start_distributed(worker_device(), timeout=connection_timeout(recipe.watchdog_seconds))
    keep_log(Path(recipe.output), launched_as()[0])
    stop.listen()  # until now a signal just ends a worker: there was nothing to save


def main(
    recipe_type: type[TrainingRecipe] = TrainingRecipe, system_of: SystemOf = default_system_of
) -> int:
    """The command line; a system outside this package gives its own settings and `system_of`."""
    parser = argparse.ArgumentParser(prog="python -m training.run", description=__doc__)
    parser.add_argument("recipe", type=Path, help="resolved training recipe, JSON or YAML")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # set by `deepspeed`
    parser.add_argument(
        "--take-over", action="store_true", help="take the output from another run, even alive"
    )
    parser.add_argument(
        "--newer-data",
        action="store_true",
        help="train stages that have not begun on the dataset as it is now",
    )
    parser.add_argument(
        "--redo-later", action="store_true", help="train stages anew that grew from old weights"
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default=os.environ.get(FORMAT, "text"),
        help="of messages and logs",
    )
    arguments = parser.parse_args()
    os.environ[FORMAT] = arguments.log_format
    shown = logging.StreamHandler()
    shown.setFormatter(chosen(Shown()))
    logging.basicConfig(handlers=[shown])
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        values = parse_yaml(Path(os.path.expanduser(arguments.recipe)).read_text(encoding="utf-8"))
        recipe = recipe_type.model_validate(values, context=FROM_USER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        tell(f"{arguments.recipe}: {error}", level="error")
        return 2
    run = run_of(arguments.recipe)
    if run is not None:
        recipe = recipe.model_copy(update={"output": str(run)})
    at_work_on(run=recipe.output, dataset=recipe.datasets_label)
    try:
        stop = StopSignal(Path(recipe.output))
        if launched_as()[0] == 0:
            records = _train_first(
                recipe,
                stop,
                take_over=arguments.take_over,
                newer_data=arguments.newer_data,
                redo_later=arguments.redo_later,
                system_of=system_of,
            )
        else:
            _join(recipe, stop)
            records = run_stages(recipe, stop_requested=stop, system_of=system_of)
    except FlowmapsrError as error:
        tell(str(error), level="error")
        return 1
    if records is None:
        tell("stopped with a checkpoint; run the same command to continue")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
