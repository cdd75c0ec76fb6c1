"""What a build of a dataset shows on the page of its Prefect run."""

from __future__ import annotations

from collections import Counter

from rich import filesize

from datagen.dataset.layout import PREVIEW, REJECTED
from datagen.dataset.manifest import Manifest
from datagen.io import storage
from pipelines.orchestration.run_page import Progress, show_end
from pipelines.terminal.progress import BuildMeter
from pipelines.terminal.text import counted, duration
from training.tracking.summary.stage_table import Table


def build_progress(meter: BuildMeter) -> Progress:
    """`12 of 24 samples, 12.3 samples/s, 4.5 MB/s, 3 rejected, 45 s left`."""
    left = meter.seconds_left
    text = f"{meter.done} of {meter.total} samples, {meter.note()}"
    return meter.percent, text + (f", {duration(left)} left" if left else "")


def show_build(
    dataset: str,
    *,
    before: Manifest | None,
    after: Manifest,
    new_photos: int,
    made: BuildMeter,
    speed: str,
    seconds: float,
    mlflow: str | None,
) -> None:
    """Shows a run that completed a dataset, and what the dataset holds now.

    Args:
        before: the manifest that the run added to.
        new_photos: photos that samples were planned of, also by runs before that were stopped.
        made: the samples of this run alone.
        mlflow: where the dataset was logged.
    """
    added = after.num_samples - (before.num_samples if before else 0)
    reasons = Counter(after.rejected.by_reason)
    left_out = reasons - Counter(before.rejected.by_reason if before else {})
    parts = [f"{counted(added, 'sample')} added"] if added else []
    parts += [f"{counted(left_out.total(), 'photo')} left out"] if left_out else []
    message = ", ".join(parts) or "nothing new"
    facts = (
        ("time", duration(seconds)),
        ("new photos", new_photos),
        ("samples made", f"{made.samples}, {filesize.decimal(made.bytes)}"),
        ("speed", speed),
        ("digest before", f"`{before.digest}`" if before else "none: the dataset is new"),
        ("digest after", f"`{after.digest}`"),
        ("MLflow run", mlflow or "not logged"),
        ("dataset", f"`{dataset}`"),
        ("samples in all", f"{after.num_samples}, {filesize.decimal(after.bytes)}"),
        ("photos left out in all", f"{reasons.total()}, see `{REJECTED}` there"),
    )
    rows = tuple((reason, left_out[reason], count) for reason, count in reasons.most_common())
    summary = Table(("this run", message), facts).to_markdown()
    if rows:
        summary += f"\n{Table(('left out', 'by this run', 'in all'), rows).to_markdown()}"
    show_end(dataset, message, summary, [storage.join(dataset, PREVIEW)])
