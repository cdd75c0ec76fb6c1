"""Shows a build on its Prefect run's page: progress while it works, at the end what was made.

All of it from side threads with a time limit: a Prefect that is slow or gone costs a warning.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect import runtime
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from datagen.dataset.layout import PREVIEW, REJECTED
from datagen.dataset.manifest import Manifest
from datagen.io import storage
from pipelines.orchestration.guard import artifact_slug, side_thread, warn
from pipelines.terminal.build_meter import BuildMeter
from pipelines.terminal.text import duration, human_bytes

log = logging.getLogger(__name__)

UPDATE_SECONDS = 5.0
SILENCE_SECONDS = 30.0
"""Pause after a failed update."""
LAST_SECONDS = 5.0
"""How long the end of a build waits for its last progress."""
SUMMARY_SECONDS = 15.0
"""How long the end of a build waits for its summary."""
CALL_SECONDS = 10.0


@contextmanager
def progress_artifact(meter: BuildMeter, dataset: str) -> Iterator[None]:
    """Keeps a progress artifact of the current flow run up to date for the length of the block."""
    stop = threading.Event()
    page = _ProgressPage(meter, key=f"{artifact_slug(dataset)}-progress")
    thread = side_thread(lambda: page.follow(stop), name="prefect-progress")
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=LAST_SECONDS)


class _ProgressPage:
    def __init__(self, meter: BuildMeter, *, key: str) -> None:
        self._meter = meter
        self._key = key
        self._artifact: UUID | None = None
        self._sent = -1

    def follow(self, stop: threading.Event) -> None:
        """Sends the meter every few seconds until told to stop, and then once more."""
        with get_client(sync_client=True, httpx_settings={"timeout": CALL_SECONDS}) as client:
            pause, last = 0.0, False
            while not last:
                last = stop.wait(timeout=pause)
                try:
                    self._send(client)
                    pause = UPDATE_SECONDS
                except Exception as error:  # the edge of this thread: the build must not notice
                    pause = SILENCE_SECONDS
                    warn(error)

    def _send(self, client: SyncPrefectClient) -> None:
        meter = self._meter
        if self._sent == meter.done:
            return
        done = meter.done
        left = meter.seconds_left
        text = f"{done} of {meter.total} samples, {meter.note()}"
        if left:
            text += f", {duration(left)} left"
        if self._artifact is None:
            new = ArtifactCreate(
                key=self._key,
                type="progress",
                data=meter.percent,
                description=text,
                flow_run_id=runtime.flow_run.id,
                task_run_id=runtime.task_run.id,
            )
            self._artifact = client.create_artifact(new).id
        else:
            client.update_artifact(
                self._artifact, ArtifactUpdate(data=meter.percent, description=text)
            )
        self._sent = done


def show_result(manifest: Manifest, dataset: str) -> None:
    """Adds summary, tables and a link to the preview to the current flow run's page."""
    thread = side_thread(lambda: _add_all(manifest, dataset), name="prefect-artifacts")
    thread.join(timeout=SUMMARY_SECONDS)
    if thread.is_alive():
        log.warning("Prefect takes the dataset's summary too slowly; not waited for")


def _add_all(manifest: Manifest, dataset: str) -> None:
    name = artifact_slug(dataset)
    try:
        create_markdown_artifact(summary_markdown(manifest, dataset), key=f"{name}-summary")
        create_table_artifact(bucket_rows(manifest), key=f"{name}-buckets")
        if manifest.rejected.count:
            create_table_artifact(rejected_rows(manifest), key=f"{name}-rejected")
        create_link_artifact(preview_link(dataset), PREVIEW, key=f"{name}-preview")
    except Exception as error:  # the edge of this thread: the dataset is complete without a page
        warn(error)


def summary_markdown(manifest: Manifest, dataset: str) -> str:
    """The dataset on half a page."""
    codec = manifest.codec
    lines = [
        f"# {dataset}",
        "",
        f"**{manifest.num_samples} samples** in {manifest.num_shards} shards, "
        f"{human_bytes(manifest.bytes)}; {manifest.rejected.count} photos left out.",
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
    shards: Counter[tuple[str, str]] = Counter()
    samples: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for record in manifest.shards:
        group = record.bucket, record.split
        shards[group] += 1
        samples[group] += record.num_samples
        size[group] += record.bytes
    return [
        {
            "bucket": bucket,
            "split": split,
            "shards": shards[bucket, split],
            "samples": samples[bucket, split],
            "bytes": size[bucket, split],
        }
        for bucket, split in sorted(shards)
    ]


def rejected_rows(manifest: Manifest) -> list[dict[str, str | int]]:
    """How many photos each reason left out, most first."""
    reasons = sorted(manifest.rejected.by_reason.items(), key=lambda item: (-item[1], item[0]))
    return [{"reason": reason, "photos": count} for reason, count in reasons]


def preview_link(dataset: str) -> str:
    """The preview's address: `file://` for a local dataset, else its own URI."""
    place = storage.join(dataset, PREVIEW)
    return place if "://" in place else Path(place).absolute().as_uri()
