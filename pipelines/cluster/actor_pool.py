"""Runs tasks on Ray actors, replaces dead ones, and never ends with a task missing: shards of a
dataset, photos to be upscaled. A builder is any callable from task to record.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

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
TELL_SECONDS = 0.5
"""Seconds, at least, between what a worker tells about its task."""


class Task(Protocol):
    @property
    def path(self) -> str: ...


T = TypeVar("T", bound=Task)
R = TypeVar("R")
OnTold = Callable[[Mapping[str, Any]], None]


def run_tasks(
    builder: Callable[..., R],
    tasks: Sequence[T],
    *,
    workers: WorkerPlan,
    on_done: Callable[[T, R], None],
    given_up: Callable[[T, str], R] | None = None,
    on_told: OnTold | None = None,
) -> list[R]:
    """Runs every task on up to `workers.count` actors of the connected Ray cluster.

    A worker that dies is replaced and its task tried again. A task that raises stops the run, after
    the running tasks have ended.

    Args:
        builder: picklable; every actor holds a copy of it. Called with a task, and with `on_told`
            also with what it may tell anything about the task, at any time and without waiting.
        workers: how many actors, and what each asks for.
        on_done: called here with each task and its record as they arrive; what it raises stops the
            run like a task that raises.
        given_up: the record of a task that lost its worker too often, and why; such a task stops
            the run when None.
        on_told: called here with what was last told about each task under way, by its path; not
            about those whose worker is lost.

    Returns:
        One record for each task, in the order of `tasks`.

    Raises:
        FlowmapsrError: a task raised one, lost its worker too often, or left no record.
    """
    run = _Run(builder, deque(tasks), workers, given_up, on_told)
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

    def __init__(self, builder: Callable[..., Any], version: str, tell_seconds: float) -> None:
        self._builder, self._version, self._tell_seconds = builder, version, tell_seconds
        self._thread = ThreadPoolExecutor(1)

    def build(self, task: Any) -> Any:
        self._require_same_code()
        return self._builder(task)

    def build_telling(self, task: Any) -> Iterator[Any]:
        """What the builder tells, then the record. It always works in the same other thread, as
        CUDA graphs need."""
        self._require_same_code()
        last = deque[Any](maxlen=1)
        work = self._thread.submit(self._builder, task, last.append)
        while not wait([work], timeout=self._tell_seconds).done:
            if last:
                yield _Told(last.pop())
        yield work.result()

    def _require_same_code(self) -> None:
        node = f"node {ray.util.get_node_ip_address()}"
        require_same_code({HERE: self._version, node: code_version()}, here=HERE)


class _Told(NamedTuple):
    what: Any


@dataclass(frozen=True)
class _Busy(Generic[T]):
    """An actor at work on its task."""

    actor: Any
    task: T
    told: Any = None


@dataclass
class _Run(Generic[T, R]):
    """State of every task and actor."""

    builder: Callable[..., R]
    waiting: deque[T]
    workers: WorkerPlan
    given_up: Callable[[T, str], R] | None
    on_told: OnTold | None
    starting: dict[Any, Any] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    busy: dict[Any, _Busy[T]] = field(default_factory=dict)
    """By the reference of the record to come, or the generator that ends with it."""
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
            call = actor.build_telling if self.on_told else actor.build
            self.busy[call.remote(task)] = _Busy(actor, task)
        free = self.workers.count - len(self.busy) - len(self.starting) - len(self.idle)
        each = self.workers.each
        # Ray sets OMP_NUM_THREADS to the CPUs asked for, so workers do not slow each other down.
        remote: Any = ray.remote(num_cpus=each.cpus, num_gpus=each.gpus, memory=each.memory)
        for _ in range(min(free, len(self.waiting) - len(self.starting))):
            started = remote(_PoolWorker).remote(self.builder, code_version(), TELL_SECONDS)
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
                self._note_busy(ref, on_done)

    def stop(self) -> None:
        """Kills every actor; commits are atomic, so a running one leaves nothing half-written."""
        working = [one.actor for one in self.busy.values()]
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

    def _note_busy(self, ref: Any, on_done: Callable[[T, R], None]) -> None:
        one = self.busy.pop(ref)
        try:
            found = ray.get(next(ref) if self.on_told else ref)
            if isinstance(found, _Told):
                self.busy[ref] = replace(one, told=found.what)
                self._tell()
                return
            self.idle.append(one.actor)
            self._note_record(one.task, found, on_done)
        except RayTaskError as error:
            self.idle.append(one.actor)
            self._fail(error.cause if isinstance(error.cause, FlowmapsrError) else error)
        except RayError as error:
            self._note_loss(one, error, on_done)

    def _tell(self) -> None:
        if self.on_told:
            told = {one.task.path: one.told for one in self.busy.values() if one.told is not None}
            self.on_told(told)

    def _note_record(self, task: T, record: R, on_done: Callable[[T, R], None]) -> None:
        try:
            self.records[task.path] = record
            on_done(task, record)
        except FlowmapsrError as error:
            self._fail(error)

    def _note_loss(self, one: _Busy[T], error: RayError, on_done: Callable[[T, R], None]) -> None:
        ray.kill(one.actor)  # it may be cut off but alive, and must not write any more
        task, path = one.task, one.task.path
        self.losses[path] += 1
        log.warning("worker lost at %s: %s", path, first_line(error))
        self._tell()
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
