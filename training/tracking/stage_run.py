"""What rank 0 logs about a stage besides its curves and pictures: data, code, settings, hosts, and
how the stage ends when a worker hangs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from datagen.dataset.manifest import Dataset
from datagen.io import storage
from datagen.records import flatten
from training.engine.engine import deepspeed_config
from training.monitoring.mfu import Peak
from training.run_dir.paths import StagePaths
from training.run_dir.records import WorkerGroup
from training.run_dir.stacks import stack_files
from training.run_dir.starts import end_reason
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Artifact, Params, Tags, dataset_input
from training.tracking.provenance import code_tags, launch_tags
from training.tracking.tracker import STALL_SECONDS, Tracker


class StageReport:
    """What is logged about a stage besides what its loop measures."""

    def __init__(self, recipe: TrainingRecipe, folder: StagePaths, workers: WorkerGroup) -> None:
        self.recipe = recipe
        self.folder = folder
        self.workers = workers
        self.tracker = Tracker(folder.run, experiment=recipe.mlflow_experiment, stage=folder.name)

    def describe(
        self,
        dataset: Dataset,
        *,
        source: str,
        initialization: str | None,
        tags: Mapping[str, str],
        note: str,
        peak: Peak | None,
    ) -> None:
        """Logs dataset, settings, code and initial weights.

        Args:
            source: where the first weights came from.
            initialization: a table of what was loaded from there; None for random weights.
            tags: of the model.
            note: for the top of the run's page.
        """
        settings = self.recipe.stage(self.folder.name)
        all_tags = {
            "dataset.digest": dataset.manifest.digest,
            "recipe.digest": self.recipe.digest(),
            "initialized_from": source,
            "mlflow.note.content": note,
            **tags,
            **code_tags(),
            **launch_tags(),
            **self.workers.tags(),
            **({} if peak is None else peak.tags()),
        }
        self.tracker.write(Params(values=flatten(settings.model_dump(mode="json"))))
        self.tracker.write(Tags(values=all_tags))
        self._show_stacks()
        self.tracker.write(dataset_input(*dataset))
        config = deepspeed_config(settings, world_size=len(self.workers.hosts))
        self._write(self.folder.deepspeed, json.dumps(config, indent=2))
        if initialization is not None:
            self._write(self.folder.initialization, initialization)

    def stalled(self) -> None:
        """Closes the stage's run before the watchdog ends this process."""
        self._show_stacks()
        reason = end_reason(self.folder)
        self.tracker.close("FAILED", reason=reason, wait=STALL_SECONDS)

    def _show_stacks(self) -> None:
        for stacks in stack_files(self.folder.stacks):
            self.tracker.write(Artifact(path=str(stacks), folder=self.folder.stacks.name))

    def _write(self, path: Path, text: str) -> None:
        storage.write_bytes(str(path), text.encode())
        self.tracker.write(Artifact(path=str(path)))
