"""How far the build of a dataset is, as its folder shows it: of a build on any machine."""

from __future__ import annotations

from typing import Literal

from datagen.dataset.layout import MANIFEST, PLAN, TASKS
from datagen.dataset.tasks import Plan
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.lock import BUILD, living_owner
from datagen.records import FrozenModel, read_record

REMEDY = "it is of another version of flowmapsr; its build must end first"


class BuildStatus(FrozenModel):
    """A dataset and its open build; all counts are 0 where none is open or it still plans."""

    dataset: str
    state: Literal["building", "stopped", "complete"]
    samples_done: int = 0
    """Of finished tasks, with those that were left out."""
    samples: int = 0
    tasks_done: int = 0
    tasks: int = 0


class BuildProgress:
    """Looks at a dataset's folder; its plan, which may be large, is read once."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._plan: Plan | None = None

    def look(self) -> BuildStatus:
        """The status now.

        Raises:
            FlowmapsrError: there is neither a dataset nor a build.
        """
        owner = living_owner(self._dataset, BUILD)
        plan = self._read_plan()
        if plan is None:
            ended = self._plan is not None or owner is None
            if storage.exists(storage.join(self._dataset, MANIFEST)) and ended:
                return BuildStatus(dataset=self._dataset, state="complete")
            if owner is None:
                raise FlowmapsrError(f"{self._dataset} holds no dataset and no build of one")
            return BuildStatus(dataset=self._dataset, state="building")
        self._plan = plan
        names = set(storage.names(storage.join(self._dataset, TASKS), ""))
        done = [task for task in plan.tasks if task.path.rpartition("/")[2] in names]
        return BuildStatus(
            dataset=self._dataset,
            state="stopped" if owner is None else "building",
            samples_done=sum(task.num_samples for task in done),
            samples=plan.num_samples,
            tasks_done=len(done),
            tasks=len(plan.tasks),
        )

    def _read_plan(self) -> Plan | None:
        path = storage.join(self._dataset, PLAN)
        if self._plan is not None:
            return self._plan if storage.exists(path) else None
        return read_record(path, Plan, remedy=REMEDY)


def is_dataset(folder: str) -> bool:
    """Whether a folder holds a dataset, or a build of one that has planned or is at work."""
    files = (MANIFEST, PLAN)
    is_there = any(storage.exists(storage.join(folder, name)) for name in files)
    return is_there or living_owner(folder, BUILD) is not None
