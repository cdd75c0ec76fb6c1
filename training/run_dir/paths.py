"""Names of the files and folders of a run, and which of its stages are finished."""

from __future__ import annotations

import os
from pathlib import Path

from datagen.records import read_record
from training.run_dir.records import StageRecord
from training.settings.recipe import TrainingRecipe

REPORT = "report.html"
"""The page of an evaluation, here and below the output of a full run or a benchmark."""
RECIPE, STAGE_TABLE = "recipe.json", "stages.json"
METRICS_JOURNAL, FILES_JOURNAL = "tracking.jsonl", "files.jsonl"
"""Events for MLflow, in the folder of a run and of each of its stages."""
MODELS_JOURNAL = "models.jsonl"
"""Events of a stage about its models, whose files may take long to send."""
CURVES_JOURNAL, PICTURES_JOURNAL = "curves.jsonl", "pictures.jsonl"
"""Events of a run that its workers write, beside those of its launcher."""


class RunPaths:
    """Paths inside the folder of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / RECIPE
        self.datasets = root / "datasets.json"
        self.stop = root / "stop"
        self.failures = root / "failures.jsonl"
        self.logs = root / "logs"
        self.stage_table = root / STAGE_TABLE
        self.stage_table_text = root / "stages.md"
        self.mlflow = root / "mlflow.json"
        self.mlflow_lock = root / ".mlflow.lock"
        self.folder_id = root / "folder_id"
        self.report = root / REPORT
        self.set_aside = root / "set_aside.jsonl"
        self.stages = root / "stages"

    def worker_log(self, rank: int) -> Path:
        return self.logs / f"worker-{rank}.log"


class StagePaths:
    """Paths inside the folder of a run's stage."""

    def __init__(self, run: Path, name: str) -> None:
        self.run = run
        self.name = name
        self.root = RunPaths(run).stages / name
        self.checkpoints = self.root / "checkpoints"
        self.progress = self.root / "progress.json"
        self.starts = self.root / "starts.jsonl"
        self.start_seconds = self.root / "start_seconds.jsonl"
        self.start_table = self.root / "starts.json"
        self.ended = self.root / "ended.json"
        self.skipped = self.root / "skipped.jsonl"
        self.bad_step = self.root / "bad_step.json"
        self.deepspeed = self.root / "deepspeed.json"
        self.initialization = self.root / "initialization.txt"
        self.loss_over_time = self.root / "loss_over_time.json"
        self.inputs = self.root / "inputs"
        self.first_weights = self.root / "first_weights"
        self.images = self.root / "images"
        self.stacks = self.root / "stacks"
        self.model = self.root / "model"
        self.done = self.root / "done.json"

    def finished_record(self) -> StageRecord | None:
        """The record of a finished stage; None before that.

        Raises:
            FlowmapsrError: the record cannot be read.
        """
        remedy = "remove it, and training makes it again from the stage's last checkpoint"
        return read_record(self.done, StageRecord, remedy=remedy)


def run_of(recipe: Path) -> Path | None:
    """The run's folder in which a recipe's file is, which may have been moved or copied since the
    file was written; None for other recipes."""
    run = RunPaths(Path(os.path.expanduser(recipe)).absolute().parent)
    return run.root if recipe.name == RECIPE and run.stages.is_dir() else None


def run_name(run: Path) -> str:
    """What MLflow calls a run: two parts of its path, as many folders are called `run`."""
    return "/".join(run.absolute().parts[-2:])


def stage_paths(recipe: TrainingRecipe) -> list[StagePaths]:
    """The stages of a run in their order."""
    return [StagePaths(Path(recipe.output), stage.name) for stage in recipe.stages]


def finished_stages(recipe: TrainingRecipe) -> list[StageRecord] | None:
    """The records of a run's stages, if all are finished."""
    done = [record for stage in stage_paths(recipe) if (record := stage.finished_record())]
    return done if len(done) == len(recipe.stages) else None
