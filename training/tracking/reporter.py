"""What a stage reports while it trains: metrics, pictures and progress.

Only rank 0 reports; the other workers have a `Reporter` that does nothing, so that all run the same
loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from PIL import Image

from datagen.io import storage
from training.run_dir.best_effort import best_effort
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageProgress
from training.tracking.attempt import Attempt
from training.tracking.events import Status, Tags
from training.tracking.pictures import write_pictures
from training.tracking.tracker import Tracker


class Reporter:
    """Reports nothing; for all workers but rank 0."""

    @property
    def worker_hours(self) -> float:
        """What the stage has cost so far, over all its starts."""
        return 0.0

    @contextmanager
    def start_recorded(self) -> Iterator[None]:
        """Records how the block ends, as the end of this start of the stage."""
        yield

    def started(self, step: int, *, skipped_checkpoints: str) -> None:
        """The stage continues from `step`.

        Args:
            skipped_checkpoints: the damaged checkpoints before that step.
        """

    def metrics(self, step: int, *groups: Mapping[str, float]) -> None:
        """Values by the names that MLflow shows; no two groups may have the same name."""

    def pictures(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Pictures by name."""

    def checkpoint_failed(self, problem: str) -> None:
        """Why a checkpoint is missing."""

    def progress(self, progress: StageProgress) -> None:
        """What `status` and the launcher show."""

    def close(self, status: Status, *, reason: str | None) -> None:
        """Ends the stage's MLflow run."""


class StageReporter(Reporter):
    """The reporter of rank 0."""

    def __init__(self, folder: StagePaths, tracker: Tracker, attempt: Attempt) -> None:
        self.folder = folder
        self.tracker = tracker
        self.attempt = attempt

    @property
    def worker_hours(self) -> float:
        return self.attempt.worker_hours

    @contextmanager
    def start_recorded(self) -> Iterator[None]:
        with self.attempt.end_recorded():
            yield

    def started(self, step: int, *, skipped_checkpoints: str) -> None:
        for event in self.attempt.begin(step, skipped_checkpoints=skipped_checkpoints):
            self.tracker.write(event)

    def metrics(self, step: int, *groups: Mapping[str, float]) -> None:
        self.tracker.metrics(step, merge_unique(*groups, self.attempt.metrics()))

    def pictures(self, step: int, images: Mapping[str, Image.Image]) -> None:
        for picture in write_pictures(self.folder.images, step, images):
            self.tracker.write(picture)

    def checkpoint_failed(self, problem: str) -> None:
        self.tracker.write(Tags(values={"last_failed_checkpoint": problem}))

    def progress(self, progress: StageProgress) -> None:
        path = str(self.folder.progress)
        with best_effort(path):
            storage.write_bytes(path, progress.model_dump_json().encode())

    def close(self, status: Status, *, reason: str | None) -> None:
        self.tracker.close(status, reason=reason)


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
