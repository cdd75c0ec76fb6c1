"""Makes the page of an experiment in MLflow that compares its runs.

Reads parameters and the last values of metrics, never curves, so that hundreds of runs take a
second. Where MLflow cannot keep such a page, the address of a plain one is given, and the reason.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from datagen.errors import FlowmapsrError, first_line
from datagen.io import storage
from datagen.io.redaction import redacted
from datagen.records import FrozenModel
from training.run_dir.best_effort import best_effort
from training.run_dir.paths import RunPaths
from training.tracking.review.chosen import (
    AGE,
    Choice,
    Chosen,
    choices,
    experiment_called,
    first_runs,
    names_of,
    runs_of,
)
from training.tracking.review.comparison import QUALITY, LoggedRun, Pictures, Role, compare, view_of
from training.tracking.review.server import errors_in_a_line, major_version, require_answer
from training.tracking.store.address import is_server, openable_uri
from training.tracking.store.client import new_client
from training.tracking.store.view_format import COLOR, COLORS, READ_BY, TAG, View, address, written

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

log = logging.getLogger(__name__)

QUALITY_THEN_AGE = (f"metrics.`{QUALITY}` DESC", AGE)
PICTURED = 3
"""How many of the best runs are asked for their pictures."""
PLAIN = "the page is plain, without chosen columns and charts"
PICTURE = re.compile(r"(.+?)[+%]step[+%](\d+)[+%]")
"""How the file of a logged picture is called: its key, with another sign for the slash, its step
and more."""


class ReviewedRun(FrozenModel):
    name: str
    run_id: str
    metrics: dict[str, float]


class Review(FrozenModel):
    """A page that compares runs."""

    store: str
    experiment: str
    role: Role
    sorted_by: str | None
    """A metric; null: the newest come first."""
    runs: tuple[ReviewedRun, ...]
    table: str
    """Address of the page; of a store without a server, what follows the address of one."""
    charts: str
    problems: tuple[str, ...]
    """What is missing, and why."""

    @property
    def has_address(self) -> bool:
        return is_server(self.table)

    def at(self, server: str) -> Review:
        """The same with the address of a server of the store."""
        return self.model_copy(
            update={"table": server + self.table, "charts": server + self.charts}
        )


def make_review(what: Chosen) -> Review | tuple[Choice, ...]:
    """Makes the page that compares what was chosen, or makes it anew; the experiments that could be
    meant, if there are several.

    Raises:
        FlowmapsrError: MLflow does not answer, or has nothing to compare.
    """
    with errors_in_a_line(what.uri):
        if is_server(what.uri):
            require_answer(what.uri)
        client = new_client(what.uri)  # sets up MLflow's patience, too
        major = major_version(what.uri)
        if len(what.folders) > 1:
            runs, gone = runs_of(client, what.folders)
            return _reviewed(client, what.uri, "training", runs, major, alone=True, problems=gone)
        if what.folders:
            runs, _ = runs_of(client, what.folders)
            place = runs[0].info.experiment_id
        elif what.experiment is not None:
            place = experiment_called(client, what.experiment).experiment_id
        else:
            found = choices(client)
            if not found:
                raise FlowmapsrError(f"MLflow at {redacted(what.uri)} has no trainings yet")
            if len(found) > 1:
                return tuple(found.values())
            (place,) = found
        for role in get_args(Role):
            if runs := first_runs(client, place, role, *QUALITY_THEN_AGE):
                return _reviewed(client, what.uri, role, runs, major)
        name = client.get_experiment(place).name
        raise FlowmapsrError(f"experiment {name!r} has no trainings and no datasets of flowmapsr")


def _reviewed(
    client: MlflowClient,
    uri: str,
    role: Role,
    runs: Sequence[Run],
    major: int | None,
    *,
    alone: bool = False,
    problems: Sequence[str] = (),
) -> Review:
    """Keeps the view of these runs `alone`, or of all those of their role and experiment."""
    experiment = client.get_experiment(runs[0].info.experiment_id)
    found = compare(role, [_logged(run) for run in runs])
    shown, key = f"tags.role = '{role}'", f"flowmapsr-{role}s"
    if alone:
        listed = ", ".join(sorted(f"'{run.run_id}'" for run in found.runs))
        shown = f"attributes.run_id IN ({listed})"
        key = f"flowmapsr-{hashlib.sha256(shown.encode()).hexdigest()[:10]}"
    pictures = _pictures(client, [run.run_id for run in found.runs[:PICTURED]])
    view = view_of(found, filter=shown, pictures=pictures)
    by_id = {run.info.run_id: run for run in runs}
    charted = [by_id[run.run_id] for run in found.runs[: len(COLORS)]]
    kept, problem = _keep(client, experiment, key, view, charted, major)
    base = redacted(uri).rstrip("/") if is_server(uri) else ""
    table, charts = (
        base + address(experiment.experiment_id, view, kept, charts=charts, major=major or READ_BY)
        for charts in (False, True)
    )
    return Review(
        store=redacted(uri),
        experiment=experiment.name,
        role=role,
        sorted_by=found.by,
        runs=tuple(
            ReviewedRun(
                name=run.name,
                run_id=run.run_id,
                metrics={name: run.metrics[name] for name in found.metrics if name in run.metrics},
            )
            for run in found.runs
        ),
        table=table,
        charts=charts,
        problems=(*problems, *filter(None, [problem])),
    )


def _logged(run: Run) -> LoggedRun:
    return LoggedRun(run.info.run_id, run.info.run_name, run.data.params, run.data.metrics)


def _keep(
    client: MlflowClient,
    experiment: Experiment,
    key: str,
    view: View,
    shown: Sequence[Run],
    major: int | None,
) -> tuple[str | None, str | None]:
    """Keeps a view in MLflow, in which the runs whose charts it shows can be told apart. The key of
    the view that the page can open, if there is one; and why it is not this one, if it is not."""
    from mlflow.exceptions import MlflowException

    if major != READ_BY:
        found = "tells no version" if major is None else f"has MLflow {major}"
        return None, f"{PLAIN}: these need MLflow {READ_BY}, and the server {found}"
    try:
        client.set_experiment_tag(experiment.experiment_id, TAG + key, written(view))
        _color(client, shown)
    except MlflowException as error:
        why = first_line(error)
        if TAG + key in experiment.tags:
            return key, f"the view is an earlier one: it cannot be made anew ({why})"
        return None, f"{PLAIN}: MLflow does not keep these ({why})"
    return key, None


def _color(client: MlflowClient, runs: Sequence[Run]) -> None:
    """Gives each run that has no color one that no other of them has."""
    taken = {run.data.tags.get(COLOR) for run in runs}
    free = iter([color for color in COLORS if color not in taken])
    for run in runs:
        if COLOR not in run.data.tags:
            client.set_tag(run.info.run_id, COLOR, next(free))


def _pictures(client: MlflowClient, run_ids: Sequence[str]) -> Pictures | None:
    """The pictures of the first run that has some, at the last step that others have too."""
    found = [steps for run_id in run_ids if (steps := _picture_steps(client, run_id))]
    if not found:
        return None
    all_steps = [set().union(*steps.values()) for steps in found]
    common = set.intersection(*all_steps) or all_steps[0]
    return Pictures(tuple(sorted(found[0])), max(common))


def _picture_steps(client: MlflowClient, run_id: str) -> dict[str, set[int]]:
    """The steps of each picture of a run; none where its files cannot be listed from here."""
    steps: dict[str, set[int]] = {}
    try:
        files = client.list_artifacts(run_id, "images")
    # Files may be in a bucket that only the trainings' machines can read.
    except Exception as error:
        log.debug("no pictures of %s: %s", run_id, error)
        return {}
    for file in files:
        if match := PICTURE.match(Path(file.path).name):
            key = re.sub("[~#]", "/", match[1])
            steps.setdefault(key, set()).add(int(match[2]))
    return steps


def refresh_review(run: Path) -> None:
    """Makes the page anew at the end of a training, of which the server has just got all; where
    there is a database, `flowmapsr review` does. A failure is a warning."""
    try:
        names = names_of(run)
        if not is_server(names.tracking_uri):
            return
        found = make_review(Chosen(openable_uri(names.tracking_uri), {names.parent: run}))
    except FlowmapsrError as error:
        log.warning("the page that compares trainings is not made anew: %s", error)
        return
    if isinstance(found, Review):
        path = RunPaths(run).mlflow
        with best_effort(str(path)):
            names = names.model_copy(update={"review": found.table})
            storage.write_bytes(str(path), names.model_dump_json(indent=2).encode())
