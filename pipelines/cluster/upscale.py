"""Upscales files on the connected Ray cluster: a photo is a task, and a worker holds the model.

Every result has the bytes that any other number of workers would give it: tiles have a fixed side,
and a worker without a GPU computes on one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import ray

from datagen.errors import FlowmapsrError
from datagen.io import local, storage
from datagen.photos.source_file import SourceFile
from pipelines.cluster.actor_pool import run_tasks
from pipelines.cluster.ray_session import cluster_nodes
from pipelines.cluster.workers import Resources, WorkerPlan, WorkerRequest, describe_nodes
from training.inference.batch import Outcome, UpscaleReport, upscale_job
from training.inference.files import UpscaleSettings
from training.inference.jobs import Job
from training.inference.made import SIGN, sha256
from training.inference.upscaler import Upscaler
from training.system_protocol import LoadOptions
from training.weights.model_folder import CONFIG

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

    model: str
    """Absolute path of a model folder."""
    model_digest: str
    """Of its config."""
    sign: str | None
    """A file in the output that the command has put there; None in S3."""
    options: LoadOptions
    settings: UpscaleSettings
    digest: str
    """For the records of results."""

    def __call__(self, task: PhotoTask) -> Elsewhere:
        """
        Raises:
            FlowmapsrError: this node does not see the model or the output, or a result cannot be
                written.
        """
        upscaler = self._upscaler
        if _bytes_of(task.job.source) != task.bytes:
            return Elsewhere(Outcome(failed="it was changed or removed"), _node())
        return Elsewhere(upscale_job(task.job, upscaler, self.settings, digest=self.digest))

    @cached_property
    def _upscaler(self) -> Upscaler:
        if self.sign is not None and not os.path.isfile(self.sign):
            folder = os.path.dirname(self.sign)
            raise FlowmapsrError(f"{_node()} does not see the output's folder {folder}: {_SHARED}")
        if _digest_of(self.model) != self.model_digest:
            raise FlowmapsrError(
                f"{_node()} does not see the model {self.model}, or sees another one there: "
                "with --cluster it must be in a folder that all nodes share"
            )
        return Upscaler.from_pretrained(self.model, **asdict(self.options))


def upscale_on_cluster(
    jobs: Sequence[Job],
    model: Path,
    options: LoadOptions,
    settings: UpscaleSettings,
    *,
    digest: str,
    workers: int | None,
    on_done: Callable[[str, UpscaleReport], None],
) -> UpscaleReport:
    """As `upscale_all`, on the connected Ray cluster; paths are absolute.

    Args:
        workers: how many at most; as many as fit when None.

    Raises:
        FlowmapsrError: a node does not see the files that this one does, a result cannot be
            written, or no worker fits.
    """
    if not jobs:
        return UpscaleReport()
    plan = plan_photo_workers(cluster_nodes(), _bytes_below(model), options.max_memory, workers)
    so_far, start = UpscaleReport(), time.monotonic()

    def note(task: PhotoTask, record: Elsewhere) -> None:
        require_seen(task, record)
        so_far.add(task.job, record.outcome)
        so_far.seconds = time.monotonic() - start
        on_done(task.path, so_far)

    def given_up(_: PhotoTask, why: str) -> Elsewhere:
        return Elsewhere(Outcome(failed=why))

    with _sign(jobs[0].target, jobs[0].record) as sign:
        same = replace(options, same_everywhere=True)
        worker = PhotoWorker(str(model), _digest_of(model), sign, same, settings, digest)
        tasks = [PhotoTask(job, _bytes_of(job.source)) for job in jobs]
        records = run_tasks(worker, tasks, workers=plan, on_done=note, given_up=given_up)
    report = UpscaleReport(seconds=so_far.seconds)
    for job, record in zip(jobs, records, strict=True):  # in the order of the photos
        report.add(job, record.outcome)
    return report


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


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _digest_of(model: str | Path) -> str:
    path = Path(model, CONFIG)
    return sha256(path.read_bytes()) if path.is_file() else ""


def _node() -> str:
    return f"node {ray.util.get_node_ip_address()}"
