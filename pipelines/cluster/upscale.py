"""Upscales files on the connected Ray cluster: a photo is a task, and a worker holds the model. The
largest photos come last, one at a time, and all workers share their tiles.

Every result has the bytes that any other number of workers would give it: tiles have a fixed side,
and a worker without a GPU computes on one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from datagen.errors import FlowmapsrError
from datagen.io import local, storage
from datagen.photos.source_file import SourceFile
from pipelines.cluster.actor_pool import run_tasks
from pipelines.cluster.ray_session import cluster_nodes
from pipelines.cluster.shared_model import SharedModel, this_node
from pipelines.cluster.tile_helpers import TileHelpers
from pipelines.cluster.workers import Resources, WorkerPlan, WorkerRequest, describe_nodes
from training.inference.batch import Outcome, UpscaleReport, upscale_job
from training.inference.files import UpscaleSettings
from training.inference.jobs import Job
from training.inference.made import SIGN
from training.inference.under_way import Meter, PhotoShare, UnderWay, watch_over
from training.inference.upscaler import Upscaler
from training.restorer_protocol import LoadOptions

_WORKER_BYTES = 3_000_000_000
"""Of a worker beside the model: libraries, a tile, and a result of 20 megapixels."""
_SHARED = "with --cluster every node must see the same files: use a folder they share, or s3://"


@dataclass(frozen=True)
class PhotoTask:
    job: Job
    bytes: int | None
    """Of the photo's file, or of the archive that it is in, as the command sees it; None in S3."""

    @property
    def path(self) -> str:
        return self.job.source.uri


@dataclass(frozen=True)
class Elsewhere:
    """How a task ended on a worker."""

    outcome: Outcome
    unlike: str = ""
    """The node that has another file as the photo, or none."""


@dataclass(frozen=True)
class PhotoWorker:
    """Upscales photos on a node; loads the model for the first one."""

    model: SharedModel
    sign: str | None
    """A file in the output that the command has put there; None in S3."""
    settings: UpscaleSettings
    digest: str
    """For the records of results."""
    put_off_large: bool = False
    """Whether it leaves photos whose results come in rows."""
    helpers: WorkerPlan | None = None
    """Others that share the tiles of such results."""

    def __call__(
        self, task: PhotoTask, tell: Callable[[PhotoShare], None] = lambda share: None
    ) -> Elsewhere:
        """
        Args:
            tell: called as the work goes on.

        Raises:
            FlowmapsrError: this node does not see the model or the output, or a result cannot be
                written.
        """
        upscaler = self._upscaler
        if _bytes_of(task.job.source) != task.bytes:
            return Elsewhere(Outcome(failed="it was changed or removed"), this_node())
        outcome = upscale_job(
            task.job,
            upscaler,
            self.settings,
            digest=self.digest,
            put_off_large=self.put_off_large,
            watch_of=lambda megapixels: watch_over(megapixels, tell),
        )
        return Elsewhere(outcome)

    @cached_property
    def _upscaler(self) -> Upscaler:
        if self.sign is not None and not os.path.isfile(self.sign):
            folder = os.path.dirname(self.sign)
            raise FlowmapsrError(
                f"{this_node()} does not see the output's folder {folder}: {_SHARED}"
            )
        upscaler = self.model.load()
        if self.helpers is not None:
            upscaler.tiler.runs = TileHelpers(self.model, self.helpers).runs
        return upscaler


def upscale_on_cluster(
    jobs: Sequence[Job],
    model: Path,
    options: LoadOptions,
    settings: UpscaleSettings,
    *,
    digest: str,
    workers: int | None,
    on_done: Callable[[str, UpscaleReport], None],
    on_progress: Callable[[UnderWay], None],
) -> UpscaleReport:
    """As `upscale_all`, on the connected Ray cluster; paths are absolute.

    Args:
        workers: how many at most; as many as fit when None.
        on_progress: called as the work goes on, some times a second.

    Raises:
        FlowmapsrError: a node does not see the files that this one does, a result cannot be
            written, or no worker fits.
    """
    if not jobs:
        return UpscaleReport()
    shared = SharedModel.at(model, replace(options, same_everywhere=True))
    plan = plan_photo_workers(cluster_nodes(), shared.bytes(), options.max_memory, workers)
    so_far, start, meter = UpscaleReport(), time.monotonic(), Meter(jobs, on_progress)

    def note(task: PhotoTask, record: Elsewhere) -> None:
        require_seen(task, record)
        if not record.outcome.put_off:
            so_far.add(task.job, record.outcome)
            so_far.seconds = time.monotonic() - start
            meter.end(task.path, record.outcome.megapixels)
            on_done(task.path, so_far)

    def run(worker: PhotoWorker, tasks: Sequence[PhotoTask], count: int) -> list[Elsewhere]:
        each = WorkerPlan(count, plan.each)
        return run_tasks(
            *(worker, tasks),
            workers=each,
            on_done=note,
            given_up=_given_up,
            on_told=meter.reached,
        )

    with _sign(jobs[0].target, jobs[0].record) as sign:
        worker = PhotoWorker(shared, sign, settings, digest)
        tasks = [PhotoTask(job, _bytes_of(job.source)) for job in jobs]
        records = _in_rounds(run, worker, tasks, plan)
    report = UpscaleReport(seconds=so_far.seconds)
    for task in tasks:  # in the order of the photos
        report.add(task.job, records[task.path].outcome)
    return report


Round = Callable[[PhotoWorker, Sequence[PhotoTask], int], list[Elsewhere]]
"""Runs tasks on so many copies of a worker."""


def _in_rounds(
    run: Round, worker: PhotoWorker, tasks: Sequence[PhotoTask], plan: WorkerPlan
) -> dict[str, Elsewhere]:
    """Small photos first, each on a worker. Then as many of the large ones as keep all workers
    busy, and those left over one at a time, with all workers for their tiles."""
    records: dict[str, Elsewhere] = {}

    def round_of(worker: PhotoWorker, tasks: Sequence[PhotoTask], count: int) -> None:
        found = run(worker, tasks, count) if tasks else []
        records.update((task.path, one) for task, one in zip(tasks, found, strict=True))

    round_of(replace(worker, put_off_large=plan.count > 1), tasks, plan.count)
    large = [task for task in tasks if records[task.path].outcome.put_off]
    alone = len(large) // plan.count * plan.count
    round_of(worker, large[:alone], plan.count)
    helpers = WorkerPlan(plan.count - 1, plan.each)
    round_of(replace(worker, helpers=helpers), large[alone:], 1)
    return records


def _given_up(_: PhotoTask, why: str) -> Elsewhere:
    return Elsewhere(Outcome(failed=why))


def plan_photo_workers(
    nodes: Sequence[Resources], model_bytes: int, max_memory: int | None, workers: int | None
) -> WorkerPlan:
    """A GPU for each worker where the cluster has any, else a CPU.

    Args:
        model_bytes: of the model's files.
        max_memory: what a worker may hold on its device, bytes.

    Raises:
        FlowmapsrError: no node holds one.
    """
    gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    memory = _WORKER_BYTES + 2 * model_bytes
    if max_memory is not None and not gpus:
        memory = max_memory
    each = WorkerRequest(1, gpus, memory)
    most = each.fitting(nodes)
    if not most:
        raise FlowmapsrError(
            f"a worker takes {each}, and no node of the Ray cluster has that much "
            f"({describe_nodes(nodes)}); without GPUs --max-memory says what one takes"
        )
    return WorkerPlan(min(workers or most, most), each)


def require_seen(task: PhotoTask, record: Elsewhere) -> None:
    """Raises `FlowmapsrError` where a node has not the photo that still is here."""
    if record.unlike and _bytes_of(task.job.source) == task.bytes:
        raise FlowmapsrError(f"{record.unlike} does not see {task.path} as it is: {_SHARED}")


@contextmanager
def _sign(target: str, record: str | None) -> Iterator[str | None]:
    """A file in the output's folder for the length of the block, by which a worker knows it."""
    if storage.is_remote(target):
        yield None
        return
    folder = os.path.dirname(record or target)
    with local.temporary(os.path.join(folder, SIGN)) as file:
        yield file.name


def _bytes_of(source: SourceFile) -> int | None:
    """Of a local file, or of the archive that the photo is in; None where there is none."""
    uri = source.container or source.uri
    return None if storage.is_remote(uri) else storage.size(uri)
