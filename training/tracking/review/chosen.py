"""What to review: the runs or the experiment that a command names, found in MLflow."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datagen.errors import FlowmapsrError
from datagen.records import FrozenModel, read_record
from training.run_dir.paths import RunPaths
from training.tracking.review.comparison import Role
from training.tracking.store.address import openable_uri, tracking_uri
from training.tracking.store.client import active_run
from training.tracking.store.run_names import RunNames, original_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

MOST_RUNS, MOST_EXPERIMENTS = 50, 50
"""How many of the best runs decide on columns and charts (the page shows all), and how many of the
newest experiments are searched for trainings."""
AGE = "attributes.start_time DESC"


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
    names = {folder: names_of(folder) for folder in folders}
    stores = {one.tracking_uri for one in names.values()}
    if len(stores) > 1:
        listed = ", ".join(sorted(stores))
        raise FlowmapsrError(f"these runs are in different MLflow stores: {listed}; review each")
    return Chosen(openable_uri(stores.pop()), {one.parent: folder for folder, one in names.items()})


def _is_run(folder: Path) -> bool:
    paths = RunPaths(folder)
    return paths.recipe.is_file() or paths.mlflow.is_file()


def names_of(folder: Path) -> RunNames:
    """The MLflow runs of a run folder; `FlowmapsrError` where it has none of its own."""
    path = RunPaths(folder).mlflow
    names = read_record(path, RunNames, remedy="remove it, and the training makes a new MLflow run")
    why = "the command of its training sends it" if _is_run(folder) else "it is no run folder"
    if names is None:
        raise FlowmapsrError(f"{folder} has no {path.name}: nothing of it is in MLflow; {why}")
    original = original_of(folder)
    if original is not None:
        raise FlowmapsrError(f"{folder} is a copy of {original}: nothing of it is in MLflow; {why}")
    return names


def experiment_called(client: MlflowClient, name: str) -> Experiment:
    """`FlowmapsrError` says what was meant, where there is none of that name."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "active":
        return found
    if found is not None:
        raise FlowmapsrError(f"experiment {name!r} was deleted in MLflow; restore it there")
    names = [one.name for one in client.search_experiments()]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(names[:10])}"
    raise FlowmapsrError(f"{name} is no folder of a run, and no experiment in MLflow: {hint}")


def choices(client: MlflowClient) -> dict[str, Choice]:
    """The experiments with trainings, by their IDs."""
    found = {}
    for one in client.search_experiments(max_results=MOST_EXPERIMENTS):
        if runs := first_runs(client, one.experiment_id, "training", AGE, most=1):
            newest = runs[0].info.run_name
            found[one.experiment_id] = Choice(experiment=one.name, newest_training=newest)
    return found


def first_runs(
    client: MlflowClient, experiment_id: str, role: Role, *order: str, most: int = MOST_RUNS
) -> list[Run]:
    """The first runs of a role."""
    query = f"tags.role = '{role}'"
    return list(client.search_runs([experiment_id], query, max_results=most, order_by=list(order)))


def runs_of(client: MlflowClient, folders: Mapping[str, Path]) -> tuple[list[Run], list[str]]:
    """The runs of folders, the newest first, and a line for each that was deleted.

    Raises:
        FlowmapsrError: all were, or they are not in one experiment.
    """
    runs, gone = [], []
    for run_id, folder in folders.items():
        if (run := active_run(client, run_id)) is not None:
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
