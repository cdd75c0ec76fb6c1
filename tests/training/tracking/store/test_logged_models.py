"""Checkpoints and models of stages in MLflow: listed, sent once, completed, loaded again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from datagen.errors import FlowmapsrError
from tests.support.browser import CHROMIUM, browser, text_with
from tests.support.mlflow_runs import mlflow_names
from tests.support.mlflow_server import mlflow_server
from tests.support.ports import free_port
from tests.support.tiny import WARMUP, RunMaker, weights
from training.flowmap.initial import initial_network
from training.run_dir.paths import StagePaths
from training.run_dir.records import ChosenStep
from training.settings.recipe import TrainingRecipe
from training.tracking.events import DatasetInput, KeptCheckpoints
from training.tracking.model_events import checkpoint, stage_model
from training.tracking.tracker import Tracker
from training.weights.initialize import fetch_weights

DATASET = DatasetInput(name="photos", digest="d" * 64, source="/data/photos", samples=12)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests here, as its tables take seconds to create."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return MlflowClient(store)


@pytest.fixture
def recipe(run_recipe: RunMaker, tmp_path: Path) -> TrainingRecipe:
    """With the model folder of a finished stage, too small to be a real one."""
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    folder = StagePaths(tmp_path / "run", "warmup").model
    folder.mkdir(parents=True)
    config = {"format_version": 1, "recipe_digest": recipe.digest()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    return recipe


def _tracker(recipe: TrainingRecipe) -> Tracker:
    return Tracker(Path(recipe.output), experiment="tests", stage="warmup")


def _folder(recipe: TrainingRecipe) -> StagePaths:
    return StagePaths(Path(recipe.output), "warmup")


def _write_model(recipe: TrainingRecipe, tracker: Tracker, step: int = 30) -> None:
    tracker.write(stage_model(recipe, _folder(recipe), [DATASET], ChosenStep(step, "last")))


def _models(client: MlflowClient, recipe: TrainingRecipe) -> dict[str, LoggedModel]:
    run = client.get_run(mlflow_names(recipe.output).stages["warmup"]).info
    query = f"source_run_id = '{run.run_id}'"
    found = client.search_logged_models([run.experiment_id], filter_string=query)
    assert len({model.name for model in found}) == len(found)
    return {model.name: model for model in found}


def _init(recipe: TrainingRecipe, source: str, output: Path) -> tuple[TrainingRecipe, StagePaths]:
    """A run whose first stage starts from that source, which is fetched."""
    stage = recipe.stages[0].model_copy(update={"init_from": source})
    later = recipe.model_copy(update={"output": str(output), "stages": (stage,)})
    folder = StagePaths(output, stage.name)
    fetch_weights(later, folder)
    return later, folder


@pytest.mark.timeout(300)
def test_a_trained_model_is_registered_and_another_training_starts_from_it(
    undisturbed: TrainingRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    run = Path(shutil.copytree(undisturbed.output, tmp_path / "run"))
    recipe = undisturbed.model_copy(update={"output": str(run)})
    with mlflow_server(tmp_path, port):
        client = MlflowClient()
        tracker = Tracker(run, experiment="tests", stage="warmup", label="1 warmup", begins=False)
        assert tracker.close(None, models=True)
        kept = {path.name for path in _folder(undisturbed).checkpoints.iterdir()}
        models = _models(client, recipe)
        assert models.keys() == {"warmup", *(f"warmup-{name}" for name in kept)}
        assert {model.status for model in models.values()} == {LoggedModelStatus.READY}
        names = mlflow_names(run)
        (listed,) = client.get_run(names.parent).outputs.model_outputs
        assert (listed.model_id, listed.step) == (models["warmup"].model_id, 60)

        version = mlflow.register_model(models["warmup"].model_uri, "photos-to-photos")
        assert version.run_id == names.stages["warmup"]
        source = f"models:/photos-to-photos/{version.version}"
        later, folder = _init(recipe, source, tmp_path / "later")
        if CHROMIUM is not None:
            with browser(width=2600) as page:
                experiment = client.get_run(names.parent).info.experiment_id
                page.goto(f"http://127.0.0.1:{port}/#/experiments/{experiment}/models")
                text_with(page, *models, "· 1 warmup", "photos-to-photos v1")
                page.goto(f"http://127.0.0.1:{port}/#/models/{version.name}/versions/1")
                text_with(page, "run · 1 warmup Source Model : warmup")
    channels = json.loads((folder.inputs / "config.json").read_text())["latent_channels"]
    net = initial_network(later, folder, latent_channels=channels).net.state_dict()
    for name, trained in weights(undisturbed, "warmup").items():
        assert torch.equal(net[name], trained)


def test_checkpoints_on_disk_are_listed_with_what_was_measured(
    client: MlflowClient, recipe: TrainingRecipe
) -> None:
    folder = _folder(recipe)
    tracker = _tracker(recipe)
    for step in (10, 20, 30):
        tracker.metrics(step, {"val/psnr_nfe1": 20.0 + step, "loss/fm": 1.0})
        kept = {step: "one of the last", 10: "best val/psnr_nfe1" if step > 10 else "the last"}
        new = checkpoint(recipe, folder, [DATASET], step=step, uri=f"s3://bucket/step-{step}")
        tracker.write(new, KeptCheckpoints(reasons=kept))
    _write_model(recipe, tracker)
    assert tracker.close("FINISHED", models=True)
    _check_listed(client, recipe)
    for sent in folder.root.glob("*.sent"):
        sent.unlink()  # all is sent once more when it is not known any longer what was
    assert _tracker(recipe).close("FINISHED", models=True)
    _check_listed(client, recipe)


def _check_listed(client: MlflowClient, recipe: TrainingRecipe) -> None:
    models = _models(client, recipe)
    assert models.keys() == {"warmup", "warmup-step-000010", "warmup-step-000030"}
    best = models["warmup-step-000010"]
    assert best.tags["kept"] == "best val/psnr_nfe1"
    assert best.tags["mlflow.note.content"].startswith("Kept: best val/psnr_nfe1. The state of")
    assert best.tags["files"] == "s3://bucket/step-10"
    (measured,) = best.metrics
    assert (measured.key, measured.value, measured.step) == ("val/psnr_nfe1", 30.0, 10)
    assert (measured.dataset_name, measured.dataset_digest) == ("photos", "d" * 36)
    assert [metric.value for metric in models["warmup"].metrics] == [50.0]
    run = mlflow_names(recipe.output).stages["warmup"]
    history = client.get_metric_history(run, "val/psnr_nfe1")
    assert [point.value for point in history] == [30.0, 40.0, 50.0]


def test_an_upload_that_was_cut_short_is_completed_by_the_next_start(
    client: MlflowClient,
    recipe: TrainingRecipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upload = MlflowClient.log_model_artifact

    def refuse(self: MlflowClient, model_id: str, path: str) -> None:
        if path.endswith("model.safetensors"):
            raise OSError("no space left in the artifact store")
        upload(self, model_id, path)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifact", refuse)
        tracker = _tracker(recipe)
        _write_model(recipe, tracker)
        assert not tracker.close("FINISHED", models=True)
    assert "takes no models (no space left in the artifact store)" in caplog.text
    pending = _models(client, recipe)["warmup"]
    assert pending.status == LoggedModelStatus.PENDING

    assert _tracker(recipe).close("FINISHED", models=True)
    model = _models(client, recipe)["warmup"]
    assert (model.model_id, model.status) == (pending.model_id, LoggedModelStatus.READY)
    files = client.list_logged_model_artifacts(model.model_id)
    assert {file.path for file in files} == {"config.json", "model.safetensors"}


def test_a_server_without_models_gets_everything_else(
    client: MlflowClient,
    recipe: TrainingRecipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise MlflowException("404 Not Found", error_code=ENDPOINT_NOT_FOUND)  # as 2.22 answers

    monkeypatch.setattr(MlflowClient, "search_logged_models", refuse)
    tracker = _tracker(recipe)
    tracker.write(KeptCheckpoints(reasons={10: "one of the last"}))
    _write_model(recipe, tracker)
    tracker.metrics(1, {"loss/fm": 1.0})
    assert tracker.close("FINISHED", models=True)
    (said,) = [line for line in caplog.messages if "older than 3.0" in line]
    assert "all else is" in said
    run = client.get_run(mlflow_names(recipe.output).stages["warmup"])
    assert run.data.metrics == {"loss/fm": 1.0} and run.info.status == "FINISHED"


def test_a_model_too_large_to_send_is_loaded_from_where_it_was_trained(
    client: MlflowClient, recipe: TrainingRecipe, tmp_path: Path
) -> None:
    recipe = recipe.model_copy(update={"upload_models_gb": 1e-9})
    tracker = _tracker(recipe)
    _write_model(recipe, tracker)
    new = checkpoint(recipe, _folder(recipe), [DATASET], step=30, uri=str(tmp_path / "step-000030"))
    tracker.write(new)
    assert tracker.close("FINISHED", models=True)
    models = _models(client, recipe)
    assert client.list_logged_model_artifacts(models["warmup"].model_id) == []
    assert "more than upload_models_gb" in models["warmup"].tags["mlflow.note.content"]
    for model, name in ((models["warmup"], "large"), (models["warmup-step-000030"], "state")):
        mlflow.register_model(model.model_uri, name)

    _, folder = _init(recipe, "models:/large/1", tmp_path / "later")
    assert (folder.inputs / "model.safetensors").read_bytes() == b"weights"
    with pytest.raises(FlowmapsrError, match=r"init_from: models:/state/1 is a checkpoint.*reg"):
        _init(recipe, "models:/state/1", tmp_path / "other")
    (_folder(recipe).model / "config.json").write_text('{"recipe_digest": "of another run"}')
    with pytest.raises(FlowmapsrError, match=r"models:/large/1 \(MLflow has no copy.*another's"):
        _init(recipe, "models:/large/1", tmp_path / "other")


@pytest.fixture
def pickled(client: MlflowClient, tmp_path: Path) -> Iterator[str]:
    """A version that another project has registered."""
    experiment = client.create_experiment("others", (tmp_path / "others").as_uri())
    model = client.create_logged_model(experiment, name="forest")
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    client.log_model_artifact(model.model_id, str(tmp_path / "model.pkl"))
    yield f"models:/forest/{mlflow.register_model(model.model_uri, 'forest').version}"


def test_a_version_of_another_project_is_refused_unopened(
    pickled: str, recipe: TrainingRecipe, tmp_path: Path
) -> None:
    with pytest.raises(FlowmapsrError, match=r"forest/1 holds no .safetensors file.*model\.pkl"):
        _init(recipe, pickled, tmp_path / "later")
    assert not any((tmp_path / "later").rglob("*.pkl"))
