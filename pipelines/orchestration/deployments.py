"""Registers a flow with its resolved recipe as a Prefect deployment, one for each output.

Addresses and secrets stay in the worker's environment and are never sent to Prefect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    WorkerStatus,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.flows import EntrypointType
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from datagen.io.redaction import holds_secret
from pipelines.orchestration.deployment_text import description
from pipelines.orchestration.guard import artifact_slug, refusal
from pipelines.recipes.full_recipe import AnyRecipe
from pipelines.recipes.overrides import RecipeError
from pipelines.terminal.reports import Deployed

POOL_TYPE = "process"
ANCHOR = datetime(2024, 1, 1, tzinfo=UTC)
"""Intervals count from here, so that runs fall on round times of day."""
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Schedule = CronSchedule | IntervalSchedule


def parse_schedule(cron: str | None, interval: str | None, timezone: str) -> Schedule | None:
    """The schedule that the options ask for, if any.

    Raises:
        RecipeError: both were given, or Prefect does not understand it.
    """
    if cron and interval:
        raise RecipeError(f"--cron {cron!r} and --interval {interval!r}: give one of them")
    try:
        if cron:
            return CronSchedule(cron=cron, timezone=timezone)
        if interval:
            step = _parse_interval(interval)
            return IntervalSchedule(interval=step, anchor_date=ANCHOR, timezone=timezone)
    except ValidationError as error:
        given = f"--cron {cron!r}" if cron else f"--interval {interval!r}"
        reason = error.errors()[0]["msg"]
        raise RecipeError(f"{given} with --timezone {timezone!r}: {reason}") from error
    return None


def deploy(
    flow: Flow[Any, Any],
    recipe: AnyRecipe,
    *,
    schedule: Schedule | None,
    pool: str,
    now: bool = False,
) -> Deployed:
    """Creates the deployment of a flow with its recipe, or updates the one of the same output;
    with `now` it starts a run of it, too.

    One run at a time: a run that is due while another is running is canceled, because the next one
    picks up everything new anyway; queued runs would only pile up behind a long build.

    Raises:
        FlowmapsrError: no server, a pool of another type, or a recipe that the server refuses.
        RecipeError: the recipe holds a secret.
    """
    parameters = {"recipe": recipe.model_dump(mode="json")}
    _refuse_secrets(parameters)
    _require_server()
    one_at_a_time = ConcurrencyLimitConfig(
        limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
    )
    name = artifact_slug(recipe.output)
    with _prefect_errors(), get_client(sync_client=True) as client:
        _ensure_pool(client, pool)
        deployment = flow.to_deployment(
            name,
            parameters=parameters,
            schedules=[DeploymentScheduleCreate(schedule=schedule)] if schedule else [],
            concurrency_limit=one_at_a_time,
            work_pool_name=pool,
            entrypoint_type=EntrypointType.MODULE_PATH,
            description=description(recipe, f"{flow.name}/{name}"),
            tags=["flowmapsr"],
        )
        assert isinstance(deployment, RunnerDeployment)  # Prefect's types allow for async callers
        deployment_id = deployment.apply()
        assert isinstance(deployment_id, UUID)
        found = client.read_deployment(deployment_id)
        due = _next_run(client, found)
        run = client.create_flow_run_from_deployment(deployment_id).name if now else None
        workers = client.read_workers_for_work_pool(pool)
    return Deployed(
        deployment=f"{flow.name}/{found.name}",
        id=str(deployment_id),
        output=recipe.output,
        work_pool=pool,
        schedule=_describe(schedule),
        schedule_id=str(found.schedules[0].id) if found.schedules else None,
        next_run=due,
        started=run,
        has_worker=any(worker.status == WorkerStatus.ONLINE for worker in workers),
    )


def _next_run(client: SyncPrefectClient, deployment: DeploymentResponse) -> datetime | None:
    """Next scheduled run according to the server."""
    if not deployment.schedules:
        return None
    (kept,) = deployment.schedules
    path = {"id": deployment.id}  # at once, where the server would take some seconds
    client.request("POST", "/deployments/{id}/schedule", path_params=path, json={"min_runs": 1})
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment.id]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"name": {"any_": ["Scheduled"]}}}),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )
    # The server may still be adding runs of the schedule that this one has replaced.
    own = f"scheduled {deployment.id} {kept.id} "
    runs = [run for run in runs if (run.idempotency_key or "").startswith(own)]
    start = runs[0].expected_start_time if runs else None
    if start is None:
        return None
    return start.astimezone(ZoneInfo(getattr(kept.schedule, "timezone", None) or "UTC"))


def _parse_interval(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    step = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not step:
        raise RecipeError(f"--interval {text!r}: give a number and s, m, h or d, such as 15m or 6h")
    return step


def _describe(schedule: Schedule | None) -> str | None:
    if isinstance(schedule, CronSchedule):
        return f"cron {schedule.cron} ({schedule.timezone})"
    return f"every {schedule.interval}" if schedule else None


def _refuse_secrets(value: Any, field: str = "") -> None:
    """Prefect shows parameters on its pages, so no URI in them may hold a password."""
    match value:
        case str() if holds_secret(value):
            raise RecipeError(
                f"{field}: this address holds a password or key, which Prefect would show; "
                "put the credentials into the worker's environment (AWS_*)"
            )
        case dict():
            for name, item in value.items():
                _refuse_secrets(item, f"{field}.{name}" if field else name)
        case list() | tuple():
            for index, item in enumerate(value):
                _refuse_secrets(item, f"{field}.{index}")


def _require_server() -> None:
    if not get_current_settings().api.url:
        raise FlowmapsrError(
            "flowmapsr deploy needs a Prefect server that keeps running: start one with `prefect "
            "server start` and set PREFECT_API_URL, for example to http://127.0.0.1:4200/api"
        )


def _ensure_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):  # created by a worker at the same moment
            client.create_work_pool(
                WorkPoolCreate(name=name, type=POOL_TYPE, base_job_template=template)
            )
        found = client.read_work_pool(name)
    if found.type != POOL_TYPE:
        raise FlowmapsrError(
            f"work pool {name!r} is of type {found.type!r}, not {POOL_TYPE!r}; "
            "choose another one with --pool"
        )


@contextmanager
def _prefect_errors() -> Iterator[None]:
    try:
        yield
    except DeploymentApplyError as error:
        raise FlowmapsrError(f"the Prefect server refuses the deployment: {error}") from error
    except (httpx.HTTPError, PrefectException, RuntimeError) as error:
        raise FlowmapsrError(refusal(error)) from error
