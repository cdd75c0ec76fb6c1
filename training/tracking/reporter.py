"""What a stage reports: how it was started, metrics, pictures and progress, and how it ended.

Only rank 0 reports; the other workers have a `Reporter` that does nothing, so that all run the same
loop.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from PIL import Image

from datagen.dataset.manifest import Dataset
from datagen.io import storage
from training.data.bucket_mix import source_shares
from training.engine.engine import deepspeed_config
from training.monitoring.progress_lines import ProgressLines
from training.run_dir.best_effort import best_effort
from training.run_dir.further import first_weights_of
from training.run_dir.paths import StagePaths, stage_paths
from training.run_dir.records import ChosenStep, StageProgress, WorkerGroup
from training.run_dir.stacks import stack_files
from training.run_dir.starts import (
    FINISHED,
    Start,
    end_reason,
    last_line,
    read_progress,
    read_starts,
    record_end,
    record_seconds,
    record_start,
    restarts,
)
from training.settings.recipe import TrainingRecipe
from training.tracking.events import (
    NOTE,
    Artifact,
    DatasetInput,
    KeptCheckpoints,
    Picture,
    Status,
    Tags,
    described,
)
from training.tracking.model_events import checkpoint, stage_model
from training.tracking.provenance import code_tags, launch_tags
from training.tracking.run_curves import RunCurves
from training.tracking.store.send import ENDED
from training.tracking.summary.description import describe_run, stage_page_text
from training.tracking.summary.stage_facts import stage_facts
from training.tracking.summary.stage_table import shown_as_tables, start_table
from training.tracking.tracker import STALL_SECONDS, Tracker

log = logging.getLogger(__name__)


class Reporter:
    """Reports nothing; for all workers but rank 0."""

    @property
    def worker_hours(self) -> float:
        """Hours of all workers together, over all starts of the stage."""
        return 0.0

    @contextmanager
    def end_recorded(self) -> Iterator[None]:
        """Records how the block ends, for the next start and in MLflow."""
        yield

    def started(self, step: int, *, skipped_checkpoints: str) -> None:
        """The stage continues from `step`; the checkpoints after it were corrupt."""

    def metrics(self, step: int, *groups: Mapping[str, float]) -> None:
        """Values by the names that MLflow shows; no two groups may have the same name."""

    def pictures(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Pictures by name; those that cannot be written are skipped."""

    def validated(self, step: int, summary: str, *, table: str) -> None:
        """A validation in words, and its losses by time as a JSON table; both may be empty."""

    def checkpoints_changed(self, step: int, uri: str, kept: dict[int, str]) -> None:
        """A checkpoint was written; the steps whose checkpoints are on disk now, and why."""

    def checkpoint_failed(self, problem: str) -> None:
        """Why a checkpoint is missing."""

    def finished(self, why: str) -> None:
        """The stage takes no more steps, and why."""

    def dealt(self, images: Sequence[int]) -> None:
        """How many images the stage has seen of each dataset."""

    def model_written(self, chosen: ChosenStep) -> None:
        """The stage's model folder is there, with the weights of that step."""

    def first_step(self, step: int, seconds: Mapping[str, float]) -> None:
        """The first step of this start has ended, after so many seconds of each phase."""

    def progress(self, progress: StageProgress, *, last: bool) -> None:
        """What `status`, the launcher and the log show; `last` if training ends here."""

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """The progress says that the workers do this instead of steps; it may take long."""
        yield


class StageReporter(Reporter):
    """The reporter of rank 0."""

    def __init__(
        self, recipe: TrainingRecipe, folder: StagePaths, workers: WorkerGroup, *, since: float
    ) -> None:
        """
        Args:
            since: when the workers were connected, by `time.monotonic`.
        """
        self.recipe, self.folder, self.workers = recipe, folder, workers
        self.tracker = Tracker(
            folder.run,
            experiment=recipe.mlflow_experiment,
            stage=folder.name,
            label=recipe.numbered(folder.name),
        )
        self._lines = ProgressLines(recipe.stage(folder.name))
        self._progress: StageProgress | None = None
        before = read_progress(folder)
        self._hours_before = before.worker_hours if before else 0.0
        self._since = since
        self._pictures = ""

    @cached_property
    def _curves(self) -> RunCurves:
        """Made when this start is recorded, which counts."""
        return RunCurves(self.recipe, self.folder, self.workers, hours=self.worker_hours)

    @property
    def worker_hours(self) -> float:
        here = (time.monotonic() - self._since) / 3600
        return self._hours_before + here * len(self.workers.hosts)

    def describe(
        self,
        datasets: Sequence[Dataset],
        *,
        initialization: str | None,
        pictures: str,
        tags: Mapping[str, str],
    ) -> None:
        """Logs datasets, settings, code and workers.

        Args:
            initialization: a table of what the first weights were loaded from, if they were.
            pictures: what its pictures show.
            tags: of the model.
        """
        parts: list[float | None] = [None]
        if len(datasets) > 1:
            parts[:] = source_shares([one.manifest for one in datasets], self.recipe.weights)
        self._datasets = list(map(DatasetInput.of, datasets, parts))
        self._pictures = pictures
        settings = self.recipe.stage(self.folder.name)
        tags = {
            "recipe.digest": self.recipe.digest(),
            **tags,
            **code_tags(),
            **launch_tags(),
            **self.workers.tags(),
        }
        shown = shown_as_tables(self.folder.start_table.name, self.folder.loss_over_time.name)
        described_by = described(settings.model_dump(mode="json"), self._datasets, tags)
        self.tracker.write(*described_by, shown)
        self._show_stacks()
        config = deepspeed_config(settings, world_size=len(self.workers.hosts))
        self._write(self.folder.deepspeed, json.dumps(config, indent=2))
        if initialization is not None:
            self._write(self.folder.initialization, initialization)

    def _write(self, path: Path, text: str) -> None:
        storage.write_bytes(str(path), text.encode())
        self.tracker.write(Artifact(path=str(path)))

    def _show_stacks(self) -> None:
        for stacks in stack_files(self.folder.stacks):
            self.tracker.write(Artifact(path=str(stacks), folder=self.folder.stacks.name))

    def started(self, step: int, *, skipped_checkpoints: str) -> None:
        start = record_start(
            self.folder,
            self.workers,
            step,
            skipped_checkpoints,
            first_weights_of(self.recipe, self.folder),
        )
        tags = {
            "restarts": str(len(restarts(self.folder))),
            "restarted_after": (start.ended_before or "") if start.is_restart else "",
            "skipped_checkpoints": skipped_checkpoints,
        }
        self.tracker.write(Tags(values={name: value for name, value in tags.items() if value}))
        self._log_start(start)
        self._show_starts()
        self._show_pages()
        count = sum(len(restarts(stage)) for stage in stage_paths(self.recipe))
        self._curves.write(Tags(values={**self.workers.tags(), "restarts": str(count)}))

    def _log_start(self, start: Start) -> None:
        """Says from which step, and why again, unless the launcher has told of a failure."""
        stage, steps = self.folder.name, self.recipe.stage(self.folder.name).steps
        *_, before = [None, *read_starts(self.folder)[:-1]]
        if before is None:
            count, hosts = len(self.workers.hosts), ", ".join(self.workers.machines)
            log.info("%s: begins, %d steps; workers: %d on %s", stage, steps, count, hosts)
            return
        told = start.failures > before.failures or not start.is_restart
        why = "" if told else f"; the start before ended: {start.ended_before}"
        log.info("%s: goes on from step %d of %d%s", stage, start.step, steps, why)

    def _show_pages(self) -> None:
        """How the training and this stage are going, on top of their pages in MLflow."""
        with best_effort("the pages of the training"):
            self._curves.write(*describe_run(self.recipe, ended=False))
            facts = stage_facts(self.recipe, self.folder)
            text = stage_page_text(self.recipe, facts, pictures=self._pictures)
            self.tracker.write(Tags(values={NOTE: text}))

    def _show_starts(self) -> None:
        path = self.folder.start_table
        with best_effort(str(path)):
            storage.write_bytes(str(path), start_table(self.folder).to_json())
            self.tracker.write(Artifact(path=str(path)))

    @contextmanager
    def end_recorded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._end("FAILED", last_line(error), failure=last_line(error))
            raise
        if self.folder.done.is_file():
            self._end("FINISHED", FINISHED)
        else:
            self._end("KILLED", "stopped on request, with a checkpoint")

    def _end(self, status: Status, reason: str, *, failure: str | None = None) -> None:
        record_end(self.folder, reason)
        self._show_pages()
        self.tracker.close(status, reason=failure)

    def stalled(self) -> None:
        """Closes the MLflow run before the watchdog ends this process."""
        self._show_stacks()
        self.tracker.close("FAILED", reason=end_reason(self.folder), wait=STALL_SECONDS)

    def metrics(self, step: int, *groups: Mapping[str, float]) -> None:
        values = merge_unique(*groups)
        self.tracker.metrics(step, values)
        self._curves.metrics(step, values, hours=self.worker_hours)

    def pictures(self, step: int, images: Mapping[str, Image.Image]) -> None:
        with best_effort(f"pictures in {self.folder.images}"):
            for key, image in images.items():
                name = f"{key.replace('/', '-')}-{step:06d}.png"
                path = str(self.folder.images / name)
                with storage.open_atomic(path) as file:
                    image.save(file, format="PNG", compress_level=1)  # a tenth of the time
                self.tracker.write(Picture(key=key, step=step, path=path))
                self._curves.picture(key, step, path)

    def validated(self, step: int, summary: str, *, table: str) -> None:
        if summary:
            log.info("%s: step %d, %s", self.folder.name, step, summary)
        if table:
            with best_effort(str(self.folder.loss_over_time)):
                self._write(self.folder.loss_over_time, table)

    def checkpoints_changed(self, step: int, uri: str, kept: dict[int, str]) -> None:
        with best_effort("the list of checkpoints"):
            new = checkpoint(self.recipe, self.folder, self._datasets, step=step, uri=uri)
            self.tracker.write(new, KeptCheckpoints(reasons=kept))

    def finished(self, why: str) -> None:
        log.info("%s: %s", self.folder.name, why)
        self.tracker.write(Tags(values={ENDED: why}))

    def dealt(self, images: Sequence[int]) -> None:
        if len(images) > 1:
            parts = (
                f"{one.source} {count} ({count / sum(images):.2%}, weight {one.weight:.2%})"
                for one, count in zip(self._datasets, images, strict=True)
            )
            log.info("%s: images of each source: %s", self.folder.name, ", ".join(parts))

    def model_written(self, chosen: ChosenStep) -> None:
        with best_effort("the entry of the model"):
            self.tracker.write(stage_model(self.recipe, self.folder, self._datasets, chosen))

    def checkpoint_failed(self, problem: str) -> None:
        self.tracker.write(Tags(values={"last_failed_checkpoint": problem}))

    def first_step(self, step: int, seconds: Mapping[str, float]) -> None:
        record_seconds(self.folder, seconds)
        self._show_starts()
        log.info("%s: step %d after %.1f s", self.folder.name, step, sum(seconds.values()))

    def progress(self, progress: StageProgress, *, last: bool) -> None:
        self._lines.show(progress, last=last)
        self._write_progress(progress)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        before = self._progress
        if before is None:
            yield
            return
        self._write_progress(before.model_copy(update={"doing": what}))
        yield
        self._write_progress(before)

    def _write_progress(self, progress: StageProgress) -> None:
        self._progress, path = progress, str(self.folder.progress)
        with best_effort(path):
            storage.write_bytes(path, progress.model_dump_json().encode())


def merge_unique(*groups: Mapping[str, float]) -> dict[str, float]:
    """All values in one dictionary.

    Raises:
        ValueError: two groups have a value of the same name.
    """
    merged: dict[str, float] = {}
    for group in groups:
        if common := merged.keys() & group.keys():
            raise ValueError(f"two metrics are called {', '.join(sorted(common))}")
        merged |= group
    return merged
