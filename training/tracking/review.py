"""Finds runs in MLflow, and makes the page of their experiment that compares them.

Reads parameters and the last values of metrics, never curves, so that hundreds of runs take a
second. Where MLflow cannot keep such a page, the address of a plain one is given, and the reason.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from datagen.errors import FlowmapsrError, NoServerError, first_line
from datagen.io import storage
from datagen.io.probe import ask_http, asked, silence
from datagen.io.redaction import redacted
from datagen.records import FrozenModel, read_record
from training.run_dir.best_effort import best_effort
from training.run_dir.paths import RunPaths
from training.tracking.mlflow_client import RunNames, new_client, original_of
from training.tracking.review_view import QUALITY, LoggedRun, Pictures, Role, compare, view_of
from training.tracking.store import (
    database_file,
    is_server,
    mlflow_installed,
    openable_uri,
    tracking_uri,
)
from training.tracking.view_format import COLOR, COLORS, READ_BY, TAG, View, address, written

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

log = logging.getLogger(__name__)

MOST_RUNS, MOST_EXPERIMENTS = 50, 50
"""How many of the best runs decide on columns and charts (the page shows all), and how many of the
newest experiments are searched for trainings."""
AGE = "attributes.start_time DESC"
QUALITY_THEN_AGE = (f"metrics.`{QUALITY}` DESC", AGE)
PICTURED = 3
"""How many of the best runs are asked for their pictures."""
ANSWER_SECONDS = 5
PLAIN = "the page is plain, without chosen columns and charts"
PICTURE = re.compile(r"(.+?)[+%]step[+%](\d+)[+%]")
"""How the file of a logged picture is called: its key, with another sign for the slash, its step
and more."""


class Chosen(NamedTuple):
    """What to review in a store: several runs, the experiment of one run, or an experiment."""

    uri: str
    folders: Mapping[str, Path] = {}
    """The folders of the runs, by their IDs in MLflow."""
    experiment: str | None = None
    """Its name; None without runs: the one with trainings."""


class Choice(FrozenModel):
    """An experiment that could be reviewed."""

    experiment: str
    newest_training: str


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


def chosen(words: Sequence[str]) -> Chosen:
    """What the words of a command name: folders of runs, one experiment, or nothing.

    Raises:
        FlowmapsrError: a folder has no run in MLflow, or the runs are not in one store.
    """
    folders = [Path(os.path.expanduser(word)).absolute() for word in words]
    if not any(_is_run(folder) for folder in folders):
        if len(words) > 1:
            listed = ", ".join(words)
            raise FlowmapsrError(f"{listed}: give folders of runs, or the name of one experiment")
        return Chosen(tracking_uri(), experiment=words[0] if words else None)
    names = {folder: _names(folder) for folder in folders}
    stores = {one.tracking_uri for one in names.values()}
    if len(stores) > 1:
        listed = ", ".join(sorted(stores))
        raise FlowmapsrError(f"these runs are in different MLflow stores: {listed}; review each")
    return Chosen(openable_uri(stores.pop()), {one.parent: folder for folder, one in names.items()})


def _is_run(folder: Path) -> bool:
    paths = RunPaths(folder)
    return paths.recipe.is_file() or paths.mlflow.is_file()


def _names(folder: Path) -> RunNames:
    path = RunPaths(folder).mlflow
    names = read_record(path, RunNames, remedy="remove it, and the training makes a new MLflow run")
    why = "the command of its training sends it" if _is_run(folder) else "it is no run folder"
    if names is None:
        raise FlowmapsrError(f"{folder} has no {path.name}: nothing of it is in MLflow; {why}")
    original = original_of(folder)
    if original is not None:
        raise FlowmapsrError(f"{folder} is a copy of {original}: nothing of it is in MLflow; {why}")
    return names


def make_review(what: Chosen) -> Review | tuple[Choice, ...]:
    """Makes the page that compares what was chosen, or makes it anew; the experiments that could be
    meant, if there are several.

    Raises:
        FlowmapsrError: MLflow does not answer, or has nothing to compare.
    """
    with _errors_in_a_line(what.uri):
        if is_server(what.uri):
            _require_answer(what.uri)
        client = new_client(what.uri)  # sets up MLflow's patience, too
        major = _major_version(what.uri)
        if len(what.folders) > 1:
            runs, gone = _runs_of(client, what.folders)
            return _reviewed(client, what.uri, "training", runs, major, alone=True, problems=gone)
        if what.folders:
            runs, _ = _runs_of(client, what.folders)
            place = runs[0].info.experiment_id
        elif what.experiment is not None:
            place = _experiment(client, what.experiment).experiment_id
        else:
            choices = _choices(client)
            if not choices:
                raise FlowmapsrError(f"MLflow at {redacted(what.uri)} has no trainings yet")
            if len(choices) > 1:
                return tuple(choices.values())
            (place,) = choices
        for role in get_args(Role):
            if runs := _search(client, place, role, *QUALITY_THEN_AGE):
                return _reviewed(client, what.uri, role, runs, major)
        name = client.get_experiment(place).name
        raise FlowmapsrError(f"experiment {name!r} has no trainings and no datasets of flowmapsr")


@contextmanager
def _errors_in_a_line(uri: str) -> Iterator[None]:
    """Says in a line what MLflow raises; a database that is not there would be made by it."""
    where = redacted(uri)
    if not mlflow_installed():
        raise FlowmapsrError("MLflow is not installed: pip install mlflow")
    path = database_file(uri)
    if path is not None and not path.is_file():
        raise FlowmapsrError(
            f"there is no MLflow store at {where}: give the folder of a run, or set "
            "MLFLOW_TRACKING_URI"
        )
    try:
        yield
    except FlowmapsrError:
        raise
    # Of a database and of the network come other errors than MLflow's.
    except Exception as error:
        what = first_line(error).partition(". ")[0]
        if "database schema" not in what:
            raise FlowmapsrError(f"MLflow at {where} fails: {what}") from error
        raise FlowmapsrError(
            f"the store {where} is of another version of MLflow than {version('mlflow')}: {what}. "
            f"Open it with its own version, or upgrade an older one: mlflow db upgrade {where}"
        ) from error


def _require_answer(uri: str) -> None:
    """Asks before MLflow is loaded, which takes seconds."""
    answer = asked(ask_http, f"{uri.rstrip('/')}/version", seconds=ANSWER_SECONDS)
    if reason := silence(answer, seconds=ANSWER_SECONDS):
        raise NoServerError(
            f"MLflow at {redacted(uri)} does not answer ({reason}); start the server there, or set "
            "MLFLOW_TRACKING_URI to another"
        )


def _major_version(uri: str) -> int | None:
    """Of MLflow where the page is shown; None for a server that does not tell. Asks once and
    briefly, so that a dead server is known in seconds."""
    if not is_server(uri):
        return int(version("mlflow").partition(".")[0])
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/version",
            "GET",
            timeout=ANSWER_SECONDS,
            max_retries=0,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise FlowmapsrError(f"MLflow at {redacted(uri)} does not answer any more") from error
    found = re.match(r"(\d+)\.\d+", answer.text.strip())
    return int(found[1]) if answer.ok and found else None


def _experiment(client: MlflowClient, name: str) -> Experiment:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "active":
        return found
    if found is not None:
        raise FlowmapsrError(f"experiment {name!r} was deleted in MLflow; restore it there")
    names = [one.name for one in client.search_experiments()]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(names[:10])}"
    raise FlowmapsrError(f"{name} is no folder of a run, and no experiment in MLflow: {hint}")


def _choices(client: MlflowClient) -> dict[str, Choice]:
    """The experiments with trainings, by their IDs."""
    found = {}
    for one in client.search_experiments(max_results=MOST_EXPERIMENTS):
        if runs := _search(client, one.experiment_id, "training", AGE, most=1):
            newest = runs[0].info.run_name
            found[one.experiment_id] = Choice(experiment=one.name, newest_training=newest)
    return found


def _search(
    client: MlflowClient, experiment_id: str, role: Role, *order: str, most: int = MOST_RUNS
) -> list[Run]:
    """The first runs of a role."""
    query = f"tags.role = '{role}'"
    return list(client.search_runs([experiment_id], query, max_results=most, order_by=list(order)))


def _runs_of(client: MlflowClient, folders: Mapping[str, Path]) -> tuple[list[Run], list[str]]:
    """The runs of folders, the newest first, and a line for each that was deleted.

    Raises:
        FlowmapsrError: all were, or they are not in one experiment.
    """
    from mlflow.exceptions import MlflowException

    runs, gone = [], []
    for run_id, folder in folders.items():
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is not None and run.info.lifecycle_stage == "active":
            runs.append(run)
        else:
            gone.append(f"{folder} is left out: its run was deleted in MLflow")
    if not runs:
        raise FlowmapsrError("; ".join(gone))
    places = sorted({run.info.experiment_id for run in runs})
    if len(places) > 1:
        listed = ", ".join(client.get_experiment(place).name for place in places)
        raise FlowmapsrError(f"these runs are in several experiments: {listed}; review each")
    return sorted(runs, key=lambda run: -run.info.start_time), gone


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
        names = _names(run)
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
