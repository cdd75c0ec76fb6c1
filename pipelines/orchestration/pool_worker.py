"""The only worker of a Prefect pool, on one machine or in one container:

    python -m pipelines.orchestration.pool_worker POOL [options of prefect worker start]

Prefect would have a run whose process died with its worker run forever, and cancel all later ones
of the same output. So such runs go back into the queue first.
"""

from __future__ import annotations

import os
import sys
import time

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Scheduled

from pipelines.orchestration.deployments import POOL_TYPE

AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
RUN_ID = "PREFECT__FLOW_RUN_ID"
"""Prefect's variable in the process of a run."""
RETRY_SECONDS = 5


def main(pool: str, *options: str) -> None:
    while True:
        try:
            requeue_lost_runs(pool)
            break
        except (httpx.HTTPError, PrefectException) as error:
            print(f"Prefect's server does not answer yet: {error}", file=sys.stderr, flush=True)
            time.sleep(RETRY_SECONDS)
    worker = ("-m", "prefect", "worker", "start", "--pool", pool, "--type", POOL_TYPE)
    os.execv(sys.executable, (sys.executable, *worker, *options))


def requeue_lost_runs(pool: str) -> None:
    """Puts runs that are at work by what the server knows, but have no process, back into the
    queue; cancels those that were to be. One that outlived its worker is left alone."""
    alive = _alive()
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=AT_WORK))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=state),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        )
        for run in runs:
            if str(run.id) in alive:
                continue
            after: State[None] = (
                Cancelled() if run.state_type is StateType.CANCELLING else Scheduled()
            )
            after.message = "its worker was started again"
            print(f"{run.name}: {after.type.value.lower()}, {after.message}", flush=True)
            client.set_flow_run_state(run.id, after)


def _alive() -> set[str]:
    """The runs that have a process on this machine."""
    found = set()
    for process in psutil.process_iter():
        try:
            found.add(process.environ().get(RUN_ID, ""))
        except psutil.Error:  # another user's, or gone
            continue
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
