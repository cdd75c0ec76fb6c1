"""Logs the evaluation of a finished training on photos to the training's parent MLflow run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import flatten, read_record
from training.run_dir.lock import run_lock
from training.run_dir.paths import RunPaths, finished_stages
from training.run_dir.records import EvaluationRow, convention_of
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Artifact, Tags
from training.tracking.summary.description import describe_run
from training.tracking.summary.stage_table import EVALUATION
from training.tracking.tracker import Tracker

log = logging.getLogger(__name__)


def finished_training(run: str) -> TrainingRecipe:
    """The recipe of a training, given its folder.

    Raises:
        FlowmapsrError: there is none, or it is not finished.
    """
    recipe = read_record(RunPaths(Path(run)).recipe, TrainingRecipe, remedy="train it again")
    # It may have been moved or copied.
    here = recipe and recipe.model_copy(update={"output": run})
    if here is None or finished_stages(here) is None:
        raise FlowmapsrError(
            f"{run} is not the folder of a finished training, to whose MLflow run an evaluation "
            "can be logged"
        )
    return here


def log_evaluation(
    recipe: TrainingRecipe,
    settings: EvaluationSettings,
    rows: Sequence[EvaluationRow],
    page: bytes | None = None,
) -> None:
    """Logs the rows of the last stage's model, beside the step of all stages together, and the
    page of a report, which is kept in the run's folder, too.

    Another process that holds the run's folder costs a warning: the rows are not lost for it.
    """
    how = {f"eval.{name}": text for name, text in flatten(settings.model_dump(mode="json")).items()}
    try:
        with run_lock(recipe):
            tracker = Tracker(Path(recipe.output), experiment=recipe.mlflow_experiment)
            steps = sum(record.steps for record in finished_stages(recipe) or ())
            tracker.metrics(steps, evaluation_metrics(rows))
            tracker.write(*describe_run(recipe, ended=True))
            if page is not None:
                report = RunPaths(Path(recipe.output)).report
                storage.write_bytes(str(report), page)
                tracker.write(Artifact(path=str(report)))
            tracker.write(Tags(values={**how, "eval.convention": convention_of(rows)}))
            tracker.close("FINISHED")
    except FlowmapsrError as error:
        log.warning("the evaluation is not logged to MLflow: %s", error)


def evaluation_metrics(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """`eval/psnr_x4_nfe1`, `eval/ssim_x4_bicubic`, ..."""
    metrics: dict[str, float] = {}
    for row in rows:
        method = f"nfe{row.steps}" if row.steps else row.method
        values = {"psnr": row.psnr, "ssim": row.ssim, **row.more}
        for name, value in values.items():
            if value is not None:
                metrics[f"{EVALUATION}{name}_x{row.scale:g}_{method}"] = value
    return metrics
