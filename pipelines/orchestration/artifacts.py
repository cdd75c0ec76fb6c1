"""Shows work on the page of its Prefect run: progress while it runs, and a summary at the end.

Everything is sent from side threads with a time limit: a slow or lost server costs a warning.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import NamedTuple
from uuid import UUID

from PIL import Image
from prefect import artifacts
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from datagen.dataset.layout import PREVIEW
from datagen.dataset.manifest import Manifest
from datagen.dataset.records import ShardRecord
from datagen.errors import first_line
from datagen.io import storage
from pipelines.orchestration.build_report import BuildReport, by_count
from pipelines.orchestration.guard import artifact_slug, side_thread, warn
from pipelines.orchestration.run_report import Tenths, conclude
from pipelines.terminal.progress import BuildMeter
from pipelines.terminal.text import duration

log = logging.getLogger(__name__)

UPDATE_SECONDS = 5.0
SILENCE_SECONDS = 30.0
"""Pause after a failed update."""
LAST_SECONDS = 5.0
"""How long a finished build waits for its last progress."""
SUMMARY_SECONDS = 15.0
"""How long finished work waits for its summary."""
PICTURE_WIDTH, PICTURE_HEIGHT = 900, 2700
"""Most pixels of a picture that is shown on a page: some 100 to 200 kB."""


class Seen(NamedTuple):
    """How far some work is."""

    done: int
    percent: float
    text: str


def build_progress(meter: BuildMeter) -> Seen:
    """`12 of 24 samples, 12.3 samples/s, 4.5 MB/s, 3 rejected, 45 s left`."""
    left = meter.seconds_left
    text = f"{meter.done} of {meter.total} samples, {meter.note()}"
    return Seen(meter.done, meter.percent, text + (f", {duration(left)} left" if left else ""))


@contextmanager
def progress_artifact(look: Callable[[], Seen], name: str) -> Iterator[None]:
    """Shows progress on the page of the current flow run for the length of the block: in an
    artifact, and each tenth of the work in the log."""
    stop = threading.Event()
    thread = side_thread(lambda: _follow(look, f"{name}-progress", stop), name="prefect-progress")
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=LAST_SECONDS)


def _follow(look: Callable[[], Seen], key: str, stop: threading.Event) -> None:
    """Publishes progress every few seconds if there is some, and once at the end."""
    artifact: UUID | None = None
    tenths: Tenths | None = None
    sent, pause, last = -1, 0.0, False
    while not last:
        last = stop.wait(timeout=pause)
        pause = UPDATE_SECONDS
        try:
            seen = look()
            tenths = tenths or Tenths(seen.percent)
            if seen.done == sent:
                continue
            tenths.reach(seen.percent, seen.text)
            artifact = _publish(seen, artifact, key)
            sent = seen.done
        except Exception as error:  # logged here: the work continues without a page
            pause = SILENCE_SECONDS
            warn(first_line(error))


def _publish(seen: Seen, artifact: UUID | None, key: str) -> UUID:
    if artifact is not None:
        artifacts.update_progress_artifact(artifact, seen.percent, seen.text)
        return artifact
    created = artifacts.create_progress_artifact(seen.percent, key, seen.text)
    assert isinstance(created, UUID)  # not a coroutine: this thread has no event loop
    return created


def show_result(report: BuildReport) -> None:
    """Tells what a build did, with a summary, tables and the preview."""
    tell(report.message(), partial(_add_all, report))


def tell(message: str, add: Callable[[], None] | None = None) -> None:
    """Says what the current flow run did, and adds artifacts; waits for Prefect some seconds.

    The message is in its last state and in its name, as Prefect's list of runs shows no messages.
    """
    conclude(message)
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run = context.flow_run
    name = f"{run.name}: {message.partition('; model in ')[0]}"

    def work() -> None:
        try:
            with get_client(sync_client=True) as client:
                client.update_flow_run(run.id, name=name)
            if add is not None:
                add()
        except Exception as error:  # logged here: the work is complete without a page
            warn(first_line(error))

    thread = side_thread(work, name="prefect-artifacts")
    thread.join(timeout=SUMMARY_SECONDS)
    if thread.is_alive():
        log.warning("Prefect accepts the summary of the run too slowly; not waiting for it")


def _add_all(report: BuildReport) -> None:
    name, manifest = artifact_slug(report.dataset), report.after
    artifacts.create_markdown_artifact(
        report.markdown(), key=f"{name}-summary", description=report.message()
    )
    artifacts.create_table_artifact(bucket_rows(manifest), key=f"{name}-buckets")
    if manifest.rejected.count:
        artifacts.create_table_artifact(rejected_rows(manifest), key=f"{name}-rejected")
    preview = storage.join(report.dataset, PREVIEW)
    add_picture(storage.read_bytes(preview), key=f"{name}-preview", description=f"`{preview}`")


def add_picture(data: bytes, *, key: str, description: str) -> None:
    """Adds a picture, given its file, small enough to be kept by Prefect itself."""
    artifacts.create_image_artifact(
        picture_address(data), key=key, description=f"{description}, made smaller"
    )


def picture_address(data: bytes) -> str:
    """A picture's file -> an address that holds it; browsers open none of a disk from a page."""
    image = Image.open(BytesIO(data)).convert("RGB")
    image.thumbnail((PICTURE_WIDTH, PICTURE_HEIGHT))
    small = BytesIO()
    image.save(small, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"


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
    reasons = by_count(manifest.rejected.by_reason)
    return [{"reason": reason, "photos": count} for reason, count in reasons]
