"""The dataset of an MLflow run, as its page shows it, and links between the runs of a dataset and
its trainings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from training.tracking import events as logged
from training.tracking.events import NOTE
from training.tracking.store.view_format import START_TIME, View, address

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "datasets"
"""Where datasets have their runs."""


def log_dataset_input(client: MlflowClient, run_id: str, event: logged.DatasetInput) -> None:
    """Logs the dataset of a run. Where it has a run of its own, the one page opens from the other:
    the dataset's by "Open dataset", the list of its trainings from its description."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    run = client.get_run(run_id)
    made_by = _run_of(client, event.digest, user=run)
    source_type = "s3" if event.source.startswith("s3://") else "local"
    source = {"uri": event.source}
    if made_by is not None:
        info, source_type = made_by.info, "http"
        # Without the server, whose address is often another one for a browser.
        page = f"#/experiments/{info.experiment_id}/runs/{info.run_id}"
        source["url"] = f"{page}?workflowType=machine_learning"
        _list_trainings(client, made_by, run.info.experiment_id)
    profile = json.dumps({"num_samples": event.samples})
    dataset = Dataset(
        event.name, event.short_digest, source_type, json.dumps(source), profile=profile
    )
    tags = [] if event.weight is None else [InputTag("weight", f"{event.weight:.6g}")]
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=tags)])


def _run_of(client: MlflowClient, digest: str, *, user: Run) -> Run | None:
    """The newest run of a dataset, unless that is itself the user of its dataset."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or experiment.experiment_id == user.info.experiment_id:
        return None
    query = f"tags.`dataset.digest` = '{digest}'"
    found = client.search_runs([experiment.experiment_id], query, max_results=1)
    return found[0] if found else None


def _list_trainings(client: MlflowClient, dataset: Run, experiment_id: str) -> None:
    """Adds to a dataset's description where its trainings in an experiment are listed: however many
    come, it is one line."""
    digest = dataset.data.tags["dataset.digest"]
    # A training on a mixture has the digests of all its datasets there.
    filter = f"tags.`dataset.digest` LIKE '%{digest}%' AND tags.role = 'training'"
    view = View(filter, order=START_TIME, ascending=False, columns=())
    page = address(experiment_id, view, None).removeprefix("/")
    note = dataset.data.tags.get(NOTE, "")
    if page not in note:
        name = client.get_experiment(experiment_id).name
        line = f"[Trainings on this dataset in {name}]({page})"
        client.set_tag(dataset.info.run_id, NOTE, f"{note}\n\n{line}".strip())
