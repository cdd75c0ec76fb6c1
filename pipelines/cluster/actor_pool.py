"""Runs tasks on Ray actors, replaces dead ones, and never ends with a task missing: shards of a
dataset, photos to be upscaled. A builder is any callable from task to record.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from datagen.errors import FlowmapsrError, first_line
from pipelines.cluster.node_check import HERE
from pipelines.cluster.workers import WorkerPlan, in_words
from training.machines import code_version, require_same_code

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times one task may lose its worker before the run fails."""
PATIENCE_SECONDS = 30.0
"""Seconds without a first worker before a warning."""


class Task(Protocol):
    @property
    def path(self) -> str: ...


T = TypeVar("T", bound=Task)
R = TypeVar("R")


def run_tasks(
    builder: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: WorkerPlan,
    on_done: Callable[[T, R], None],
    given_up: Callable[[T, str], R] | None = None,
) -> list[R]:
    """Runs every task on up to `workers.count` actors of the connected Ray cluster.

    A worker that dies is replaced and its task tried again. A task that raises stops the run, after
    the running tasks have ended.

    Args:
        builder: picklable; every actor holds a copy of it.
        workers: how many actors, and what each asks for.
        on_done: called here with each task and its record as they arrive; what it raises stops the
            run like a task that raises.
        given_up: the record of a task that lost its worker too often, and why; such a task stops
            the run when None.

    Returns:
        One record for each task, in the order of `tasks`.

    Raises:
        FlowmapsrError: a task raised one, lost its worker too often, or left no record.
    """
    run = _Run(builder, waiting=deque(tasks), workers=workers, given_up=given_up)
    try:
        while run.unfinished():
            run.assign()
            run.collect(on_done)
    finally:
        run.stop()
    if run.failure is not None:
        raise run.failure
    missing = [task.path for task in tasks if task.path not in run.records]
    if missing:
        raise FlowmapsrError(f"these are missing: {', '.join(missing)}; run again")
    return [run.records[task.path] for task in tasks]


class _PoolWorker:
    """The actor: one copy of the builder. Its node may have come after all were asked for their
    version (`node_check.py`)."""

    def __init__(self, builder: Callable[[Any], Any], version: str) -> None:
        self._builder, self._version = builder, version

    def build(self, task: Any) -> Any:
        node = f"node {ray.util.get_node_ip_address()}"
        require_same_code({HERE: self._version, node: code_version()}, here=HERE)
        return self._builder(task)


@dataclass
class _Run(Generic[T, R]):
    """State of every task and actor."""

    builder: Callable[[T], R]
    waiting: deque[T]
    workers: WorkerPlan
    given_up: Callable[[T, str], R] | None
    starting: dict[Any, Any] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    busy: dict[Any, tuple[Any, T]] = field(default_factory=dict)
    """The actor and its task, by the reference of the record to come."""
    records: dict[str, R] = field(default_factory=dict)
    losses: Counter[str] = field(default_factory=Counter)
    failed_starts: int = 0
    failure: Exception | None = None

    def unfinished(self) -> bool:
        return bool(self.busy) or (bool(self.waiting) and self.failure is None)

    def assign(self) -> None:
        """Gives waiting tasks to idle actors, and starts actors for those left over."""
        if self.failure is not None:
            return
        while self.waiting and self.idle:
            actor, task = self.idle.pop(), self.waiting.popleft()
            self.busy[actor.build.remote(task)] = (actor, task)
        free = self.workers.count - len(self.busy) - len(self.starting) - len(self.idle)
        each = self.workers.each
        # Ray sets OMP_NUM_THREADS to the CPUs asked for, so workers do not slow each other down.
        remote: Any = ray.remote(num_cpus=each.cpus, num_gpus=each.gpus, memory=each.memory)
        for _ in range(min(free, len(self.waiting) - len(self.starting))):
            started = remote(_PoolWorker).remote(self.builder, code_version())
            # Only a started actor gets a task: one that waits for a CPU could hold it forever.
            self.starting[started.__ray_ready__.remote()] = started

    def collect(self, on_done: Callable[[T, R], None]) -> None:
        """Waits until an actor has started or finished its task."""
        refs = [*self.starting, *self.busy]
        ready, _ = ray.wait(refs, num_returns=1, timeout=PATIENCE_SECONDS)
        if not ready and not self.busy:
            log.warning(
                "no worker has started in %.0f s (each takes %s; the Ray cluster has %s free): its "
                "nodes are slow to start one, or other work holds what one takes; waiting",
                PATIENCE_SECONDS,
                self.workers.each,
                in_words(ray.available_resources()),
            )
        for ref in ready:
            if ref in self.starting:
                self._note_start(ref)
            else:
                self._note_end(ref, on_done)

    def stop(self) -> None:
        """Kills every actor; commits are atomic, so a running one leaves nothing half-written."""
        working = [actor for actor, _ in self.busy.values()]
        for actor in [*self.starting.values(), *self.idle, *working]:
            ray.kill(actor)

    def _note_start(self, ref: Any) -> None:
        actor = self.starting.pop(ref)
        try:
            ray.get(ref)
        except RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= ATTEMPTS:
                self._fail(FlowmapsrError(f"Ray workers cannot start: {first_line(error)}"))
        else:
            self.failed_starts = 0  # only consecutive failures mean that none can start
            self.idle.append(actor)

    def _note_end(self, ref: Any, on_done: Callable[[T, R], None]) -> None:
        actor, task = self.busy.pop(ref)
        try:
            record = ray.get(ref)
            self.idle.append(actor)
            self._note_record(task, record, on_done)
        except RayTaskError as error:
            self.idle.append(actor)
            self._fail(error.cause if isinstance(error.cause, FlowmapsrError) else error)
        except RayError as error:
            self._note_loss(actor, task, error, on_done)

    def _note_record(self, task: T, record: R, on_done: Callable[[T, R], None]) -> None:
        try:
            self.records[task.path] = record
            on_done(task, record)
        except FlowmapsrError as error:
            self._fail(error)

    def _note_loss(
        self, actor: Any, task: T, error: RayError, on_done: Callable[[T, R], None]
    ) -> None:
        ray.kill(actor)  # it may be cut off but alive, and must not write any more
        path = task.path
        self.losses[path] += 1
        log.warning("worker lost at %s: %s", path, first_line(error))
        if self.losses[path] < ATTEMPTS:
            self.waiting.appendleft(task)
            return
        why = (
            f"{path} lost its worker {ATTEMPTS} times, last: {first_line(error)}; the usual reason "
            "is too little memory: lower workers and run the same command"
        )
        if self.given_up is None:
            self._fail(FlowmapsrError(why))
        else:
            self._note_record(task, self.given_up(task, why), on_done)

    def _fail(self, error: Exception) -> None:
        """The first failure is raised, once the running tasks have ended."""
        self.failure = self.failure or error
