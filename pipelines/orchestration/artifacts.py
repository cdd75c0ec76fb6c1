"""Shows a build on the page of its Prefect run: progress while it runs, and a summary at the end.

Everything is sent from side threads with a time limit: a slow or lost server costs a warning.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect import artifacts
from rich import filesize

from datagen.dataset.layout import PREVIEW, REJECTED
from datagen.dataset.manifest import Manifest
from datagen.dataset.records import ShardRecord
from datagen.errors import first_line
from datagen.io import storage
from pipelines.orchestration.guard import artifact_slug, side_thread, warn
from pipelines.terminal.progress import BuildMeter
from pipelines.terminal.text import duration

log = logging.getLogger(__name__)

UPDATE_SECONDS = 5.0
SILENCE_SECONDS = 30.0
"""Pause after a failed update."""
LAST_SECONDS = 5.0
"""How long a finished build waits for its last progress."""
SUMMARY_SECONDS = 15.0
"""How long a finished build waits for its summary."""


@contextmanager
def progress_artifact(meter: BuildMeter, dataset: str) -> Iterator[None]:
    """Updates a progress artifact of the current flow run for the length of the block."""
    stop, key = threading.Event(), f"{artifact_slug(dataset)}-progress"
    thread = side_thread(lambda: _follow(meter, key, stop), name="prefect-progress")
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=LAST_SECONDS)


def _follow(meter: BuildMeter, key: str, stop: threading.Event) -> None:
    """Publishes progress every few seconds if there is some, and once at the end."""
    artifact: UUID | None = None
    sent, pause, last = -1, 0.0, False
    while not last:
        last = stop.wait(timeout=pause)
        done, pause = meter.done, UPDATE_SECONDS
        if done == sent:
            continue
        try:
            artifact = _publish(meter, done, artifact, key)
            sent = done
        except Exception as error:  # logged here: the build continues without a page
            pause = SILENCE_SECONDS
            warn(first_line(error))


def _publish(meter: BuildMeter, done: int, artifact: UUID | None, key: str) -> UUID:
    left = meter.seconds_left
    text = f"{done} of {meter.total} samples, {meter.note()}"
    text += f", {duration(left)} left" if left else ""
    if artifact is not None:
        artifacts.update_progress_artifact(artifact, meter.percent, text)
        return artifact
    created = artifacts.create_progress_artifact(meter.percent, key, text)
    assert isinstance(created, UUID)  # not a coroutine: this thread has no event loop
    return created


def show_result(manifest: Manifest, dataset: str) -> None:
    """Adds summary, tables and a link to the preview to the current flow run's page."""
    thread = side_thread(lambda: _add_all(manifest, dataset), name="prefect-artifacts")
    thread.join(timeout=SUMMARY_SECONDS)
    if thread.is_alive():
        log.warning("Prefect accepts the summary of the dataset too slowly; not waiting for it")


def _add_all(manifest: Manifest, dataset: str) -> None:
    name = artifact_slug(dataset)
    try:
        summary = summary_markdown(manifest, dataset)
        artifacts.create_markdown_artifact(summary, key=f"{name}-summary")
        artifacts.create_table_artifact(bucket_rows(manifest), key=f"{name}-buckets")
        if manifest.rejected.count:
            artifacts.create_table_artifact(rejected_rows(manifest), key=f"{name}-rejected")
        preview = storage.join(dataset, PREVIEW)
        link = preview if "://" in preview else Path(preview).as_uri()
        artifacts.create_link_artifact(link, PREVIEW, key=f"{name}-preview")
    except Exception as error:  # logged here: the dataset is complete without a page
        warn(first_line(error))


def summary_markdown(manifest: Manifest, dataset: str) -> str:
    """The dataset on half a page."""
    codec = manifest.codec
    lines = [
        f"# {dataset}",
        "",
        f"**{manifest.num_samples} samples** in {manifest.num_shards} shards, "
        f"{filesize.decimal(manifest.bytes)}; {manifest.rejected.count} photos left out.",
        "",
        f"- digest `{manifest.digest}`",
        f"- recipe `{manifest.recipe_digest}`",
        f"- codec {codec.kind}, {codec.channels} channels at 1/{codec.downsample} of the size",
        f"- preview `{storage.join(dataset, PREVIEW)}`",
    ]
    if manifest.rejected.count:
        lines += [f"- left out: `{storage.join(dataset, REJECTED)}`", "", "| reason | photos |"]
        lines += ["|---|---:|"]
        lines += [f"| {row['reason']} | {row['photos']} |" for row in rejected_rows(manifest)]
    return "\n".join(lines)


def bucket_rows(manifest: Manifest) -> list[dict[str, str | int]]:
    """Shards, samples and bytes of each bucket and split."""
    groups: dict[tuple[str, str], list[ShardRecord]] = {}
    for record in manifest.shards:
        groups.setdefault((record.bucket, record.split), []).append(record)
    return [
        {
            "bucket": bucket,
            "split": split,
            "shards": len(records),
            "samples": sum(record.num_samples for record in records),
            "bytes": sum(record.bytes for record in records),
        }
        for (bucket, split), records in sorted(groups.items())
    ]


def rejected_rows(manifest: Manifest) -> list[dict[str, str | int]]:
    """Number of photos left out for each reason, largest first."""
    reasons = sorted(manifest.rejected.by_reason.items(), key=lambda item: (-item[1], item[0]))
    return [{"reason": reason, "photos": count} for reason, count in reasons]
