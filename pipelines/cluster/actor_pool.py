"""Spreads shard tasks over Ray actors, outlives dead ones, and never ends with a part missing.

Knows how to place work, not what a shard is: a builder is any callable from task to record.
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
from pipelines.cluster.dataset_workers import Workers

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times one task may lose its worker before the run fails."""
PATIENCE_SECONDS = 30.0
"""Waiting this long for a first worker is worth a warning."""


class Task(Protocol):
    """What the pool needs to know of a task: how it is named to the user."""

    @property
    def path(self) -> str: ...


T = TypeVar("T", bound=Task)
R = TypeVar("R")


def run_shard_tasks(
    builder: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: Workers,
    on_done: Callable[[T, R], None],
) -> list[R]:
    """Runs every task on up to `workers.count` actors of the connected Ray cluster.

    A worker that dies is replaced and its task tried again. A task that raises stops the run, after
    the tasks already under way have ended.

    Args:
        builder: picklable; every actor holds a copy of it.
        workers: how many actors, and what each takes of its node.
        on_done: called here with each task and its record as they arrive; what it raises stops the
            run like a task that raises.

    Returns:
        One record for each task, in the order of `tasks`.

    Raises:
        FlowmapsrError: a task raised one, lost its worker too often, or left no record.
    """
    run = _Run(builder, waiting=deque(tasks), workers=workers)
    try:
        while run.unfinished():
            run.place()
            run.collect(on_done)
    finally:
        run.stop()
    if run.failure is not None:
        raise run.failure
    missing = [task.path for task in tasks if task.path not in run.records]
    if missing:
        raise FlowmapsrError(f"these parts are missing at the end: {', '.join(missing)}; run again")
    return [run.records[task.path] for task in tasks]


class _ShardWorker:
    """The actor: one copy of the builder."""

    def __init__(self, builder: Callable[[Any], Any]) -> None:
        self._builder = builder

    def ready(self) -> None:
        """Returns once the actor has its place."""

    def build(self, task: Any) -> Any:
        return self._builder(task)


def _actor_class(workers: Workers) -> Any:
    # Ray sets OMP_NUM_THREADS to the CPUs asked for, so workers do not slow each other down.
    return ray.remote(
        num_cpus=workers.cpus, num_gpus=workers.gpus, memory=workers.memory, max_restarts=0
    )(_ShardWorker)


@dataclass
class _Work(Generic[T]):
    actor: Any
    task: T


@dataclass
class _Run(Generic[T, R]):
    """Where each task and each actor stands."""

    builder: Callable[[T], R]
    waiting: deque[T]
    workers: Workers
    starting: dict[Any, Any] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    busy: dict[Any, _Work[T]] = field(default_factory=dict)
    records: dict[str, R] = field(default_factory=dict)
    losses: Counter[str] = field(default_factory=Counter)
    failed_starts: int = 0
    failure: Exception | None = None

    def unfinished(self) -> bool:
        return bool(self.busy) or (bool(self.waiting) and self.failure is None)

    def place(self) -> None:
        """Gives waiting tasks to idle actors, and starts actors for those left over."""
        if self.failure is not None:
            return
        while self.waiting and self.idle:
            actor, task = self.idle.pop(), self.waiting.popleft()
            self.busy[actor.build.remote(task)] = _Work(actor, task)
        free_places = self.workers.count - len(self.busy) - len(self.starting) - len(self.idle)
        for _ in range(min(free_places, len(self.waiting) - len(self.starting))):
            started = _actor_class(self.workers).remote(self.builder)
            # A task goes only to an actor that runs: one without a CPU might hold it for ever.
            self.starting[started.ready.remote()] = started

    def collect(self, on_done: Callable[[T, R], None]) -> None:
        """Waits until an actor has started or ended its task, and takes note."""
        refs = [*self.starting, *self.busy]
        ready, _ = ray.wait(refs, num_returns=1, timeout=PATIENCE_SECONDS)
        if not ready and not self.busy:
            logger.warning(
                "no worker has started yet: the Ray cluster has no room for %d CPU, %g GPU and "
                "%.1f GB of memory; waiting for other work on it to end",
                self.workers.cpus,
                self.workers.gpus,
                self.workers.memory / 1e9,
            )
        for ref in ready:
            if ref in self.starting:
                self._note_start(ref)
            else:
                self._note_end(ref, on_done)

    def stop(self) -> None:
        """Ends every actor; commits are atomic, so one at work leaves nothing half-written."""
        working = [work.actor for work in self.busy.values()]
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
            self.failed_starts = 0  # only those in a row tell that none can start
            self.idle.append(actor)

    def _note_end(self, ref: Any, on_done: Callable[[T, R], None]) -> None:
        work = self.busy.pop(ref)
        try:
            record = ray.get(ref)
            self.idle.append(work.actor)
            self.records[work.task.path] = record
            on_done(work.task, record)
        except RayTaskError as error:
            self.idle.append(work.actor)
            self._fail(error.cause if isinstance(error.cause, FlowmapsrError) else error)
        except RayError as error:
            self._note_loss(work, error)
        except FlowmapsrError as error:
            self._fail(error)

    def _note_loss(self, work: _Work[T], error: RayError) -> None:
        ray.kill(work.actor)  # it may be cut off rather than dead, and must not write any more
        path = work.task.path
        self.losses[path] += 1
        logger.warning("worker lost at %s: %s", path, first_line(error))
        if self.losses[path] < ATTEMPTS:
            self.waiting.appendleft(work.task)
            return
        self._fail(
            FlowmapsrError(
                f"shard {path} lost its worker {ATTEMPTS} times, last: {first_line(error)}; "
                f"the usual reason is too little memory: lower workers and run the same command"
            )
        )

    def _fail(self, error: Exception) -> None:
        """The first failure is the one that is raised, once the tasks under way have ended."""
        self.failure = self.failure or error
