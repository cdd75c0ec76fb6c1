"""Training and the full flow through a real Prefect server, real Ray Train and real kills."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from datagen.dataset.manifest import load_manifest
from datagen.errors import FlowmapsrError
from pipelines.flows.full import full
from pipelines.flows.training import train
from pipelines.orchestration.guard import artifact_slug
from pipelines.recipes.full_recipe import FullRecipe
from tests.pipelines.conftest import Ended, write_training
from tests.support.eventually import eventually
from tests.support.mlflow_runs import mlflow_names
from tests.support.prefect_servers import artifacts, last_run, log_lines
from tests.support.ray_processes import ray_actors
from tests.support.tiny import (
    WARMUP,
    RunMaker,
    dataset_recipe,
    same_weights,
    write_photos,
)
from training.checkpoints.records import COMMIT
from training.run_dir.paths import StagePaths
from training.run_dir.starts import read_failures, read_seconds, read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking.store.run_names import RunNames

pytestmark = [
    pytest.mark.usefixtures("prefect_server", "ray_cluster_address"),
    pytest.mark.timeout(900),
]


def _kill_workers(checkpoint: Path, killed: list[int], *, most: int = 1) -> None:
    """Once the checkpoint is there, kill -9 to workers of the Ray Train group."""
    eventually(checkpoint.exists, seconds=400, poll=0.02)
    for process in ray_actors("RayTrainWorker")[:most]:
        killed.append(process.pid)
        process.kill()


def test_a_killed_worker_is_replaced_and_the_model_is_that_of_torchrun(
    run_recipe: RunMaker, undisturbed: TrainingRecipe, prefect_server: str, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    checkpoint = tmp_path / "run" / "stages" / "warmup" / "checkpoints" / "step-000010" / COMMIT
    killed: list[int] = []
    killer = threading.Thread(target=_kill_workers, args=(checkpoint, killed))
    killer.start()
    (record,) = train(recipe)
    killer.join()
    _assert_told(prefect_server, recipe, tmp_path / "run")
    assert len(killed) == 1, "no worker was found to kill"
    assert (record.stage, record.steps, record.images_seen) == ("warmup", 60, 240)
    assert same_weights(recipe, undisturbed, "warmup")
    run = tmp_path / "run"
    failures, starts = read_failures(run), read_starts(StagePaths(run, "warmup"))
    assert failures and failures[0].rank in (0, 1)
    assert len(starts) == 2 and starts[1].step >= 10
    assert str(starts[1].ended_before).startswith("worker")
    assert "| restarts | 1 |" in (run / "stages.md").read_text()
    # A start that Ray made counts from its own process, not from the command.
    took = read_seconds(StagePaths(run, "warmup"))
    assert took.keys() == {1, 2} and "command" in took[1] and "command" not in took[2]


def _assert_told(server: str, recipe: TrainingRecipe, run: Path) -> None:
    """What Prefect's page shows of a training of one stage that was restarted."""
    shown = last_run(server, str(run))
    assert shown["state"]["message"] == "warmup 60/60"
    lines = log_lines(server, shown["id"], wanted="warmup 60/60")
    assert "plan: steps of warmup 60; 0 of 60 are done" in lines
    assert any(line.startswith("100 %: 60 of 60 steps") for line in lines), lines
    assert any("failure 1 of 3" in line for line in lines), "the warning of the restart"
    assert any(line.startswith("warmup: goes on from step") for line in lines), lines
    assert any(line.startswith("warmup: all 60 steps; loss/total") for line in lines), lines
    prefix = artifact_slug(str(run))
    found = artifacts(server, prefix)
    assert found[f"{prefix}-progress"]["data"] == 100
    summary = found[f"{prefix}-summary"]["data"]
    assert (
        "| steps by this run | 60 of 60 |" in summary and "| restarts of all runs | 1 |" in summary
    )
    assert load_manifest(str(Path(recipe.manifest).parent)).digest in summary
    assert f"| model | `{run}/stages/warmup/model` |" in summary
    assert found[f"{prefix}-picture"]["data"].startswith("data:image/webp;base64,")


def test_the_command_of_a_finished_run_sends_what_mlflow_has_missed(
    undisturbed: TrainingRecipe, flowmapsr: Callable[..., Ended], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed.output, run)
    for sent in (run / "mlflow.json", *run.rglob("*.sent")):
        sent.unlink()  # as if no server had ever answered
    recipe = undisturbed.model_copy(update={"output": str(run)})
    write_training(tmp_path / "mine.yaml", recipe)
    ended = flowmapsr("train", "./mine.yaml", env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert ended.code == 0 and "Connection refused" in ended.err
    last = ended.out.splitlines()[-1]
    assert last.startswith("Not sent to MLflow at http://127.0.0.1:9 yet: ")
    assert f" events in {run}/stages/distill" in last
    assert last.endswith("To send them: flowmapsr train ./mine.yaml")

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    env = {"MLFLOW_TRACKING_URI": uri}
    ended = flowmapsr("train", "./mine.yaml", "--json", env=env)
    assert ended.code == 0 and len(ended.json["stages"]) == 2, ended.err
    assert ended.json["unsent"] == {}
    client = MlflowClient(uri)
    names = mlflow_names(run)
    for run_id in (names.parent, *names.stages.values()):
        assert client.get_run(run_id).info.status == "FINISHED"
    losses = client.get_metric_history(names.stages["distill"], "loss/total")
    assert [point.step for point in losses] == [10, 20, 30, 40, 50, 60]
    journal = (run / "tracking.jsonl").stat()
    assert flowmapsr("train", "./mine.yaml", env=env).code == 0
    assert (run / "tracking.jsonl").stat() == journal, "everything was sent already"


def test_a_run_that_ray_gave_up_on_has_ended_in_mlflow_and_resumes_when_started_again(
    run_recipe: RunMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    recipe = recipe.model_copy(update={"max_failures": 0})
    checkpoint = tmp_path / "run" / "stages" / "warmup" / "checkpoints" / "step-000010" / COMMIT
    killed: list[int] = []
    killer = threading.Thread(target=_kill_workers, args=(checkpoint, killed), kwargs={"most": 2})
    killer.start()
    with pytest.raises(FlowmapsrError, match="failed more often than max_failures=0"):
        train(recipe)
    killer.join()
    client = MlflowClient(uri)
    names = mlflow_names(tmp_path / "run")
    parent, child = client.get_run(names.parent), client.get_run(names.stages["warmup"])
    assert (parent.info.status, child.info.status) == ("FAILED", "FAILED")
    assert "failed more often than max_failures=0" in parent.data.tags["failure"]
    assert child.data.tags["failure"].startswith("worker")

    train(recipe)
    parent, child = client.get_run(names.parent), client.get_run(names.stages["warmup"])
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert "failure" not in parent.data.tags | child.data.tags
    history = client.get_metric_history(child.info.run_id, "loss/total")
    assert [point.step for point in history][-5:] == [20, 30, 40, 50, 60]


def test_a_corrupt_shard_ends_training_with_its_name_and_without_retries(
    run_recipe: RunMaker, dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    shard = copy / load_manifest(str(copy)).shards[0].path
    shard.write_bytes(shard.read_bytes()[:-512] + bytes(512 * [1]))
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    recipe = recipe.model_copy(update={"manifest": str(copy / "manifest.json")})
    with pytest.raises(FlowmapsrError, match=shard.name):
        train(recipe)


def _assert_page_shows(path: Path, photos: Path) -> None:
    page = path.read_text()
    assert page.count("data-example>") == 2 and "x2: flowmapsr" in page
    assert "95 % intervals" not in page  # two photos have none
    assert all(photo.name in page for photo in photos.iterdir())


def _assert_all_is_in_mlflow(
    client: MlflowClient, names: RunNames, base: Path, psnr: float | None
) -> None:
    """The training, its one stage and the evaluation."""
    parent, child = client.get_run(names.parent), client.get_run(names.stages["warmup"])
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert parent.data.metrics["eval/psnr_x2_nfe1"] == pytest.approx(psnr)
    logged = {item.path for item in client.list_artifacts(names.parent)}
    assert {"recipe.json", "stages.json", "stages.md", "starts", "report.html"} <= logged
    tags = parent.data.tags
    assert "1 of 1 stages done" in tags["mlflow.note.content"]
    assert "On photos: psnr_x2_bicubic" in tags["mlflow.note.content"]
    assert tags["mlflow.user"] and tags["command"] and tags["code.version"]
    assert tags["version.ray"] and tags["world_size"] == "2" and tags["hosts"] and tags["devices"]
    assert child.data.tags["command"] == tags["command"]
    assert parent.data.metrics["cost/worker_hours"] > 0 == parent.data.metrics["cost/restarts"]
    assert {"perf/tflops", "system/cpu_utilization_percentage"} <= set(child.data.metrics)
    assert "loss/perceptual" not in child.data.metrics  # the recipe leaves it out
    assert {"loss/total", "loss/fm", "perf/images_per_second", "perf/data_wait_fraction"} <= set(
        child.data.metrics
    )
    digest = load_manifest(str(base / "dataset")).digest
    assert parent.inputs.dataset_inputs[0].dataset.digest == digest[:36]
    assert child.data.tags["dataset.digest"] == digest
    assert child.inputs.dataset_inputs[0].dataset.digest == digest[:36]
    assert "images" in {item.path for item in client.list_artifacts(child.info.run_id)}


def test_the_full_flow_goes_from_photos_to_an_evaluated_model(
    run_recipe: RunMaker,
    prefect_server: str,
    invoke: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    photos = write_photos(tmp_path / "photos", 2)
    base = tmp_path / "out"
    stage = {**WARMUP, "steps": 4}
    recipe = FullRecipe.model_validate(
        {
            "output": str(base),
            "dataset": dataset_recipe(photos, base / "dataset").model_dump(exclude={"output"}),
            "training": run_recipe(base / "run", stages=[stage]).model_dump(
                exclude={"output", "manifest"}
            ),
            "evaluation": {"photos": str(photos), "scales": [2], "steps": [1, 2]},
        }
    )
    record = full(recipe)
    assert [(row.method, row.steps) for row in record.rows] == [
        ("bicubic", 0),
        ("flowmapsr", 1),
        ("flowmapsr", 2),
    ]
    assert set(record.seconds) == {"dataset", "training", "evaluation", "comparison"}
    best = max(record.rows[1:], key=lambda row: row.psnr).psnr
    message = last_run(prefect_server, str(base))["state"]["message"]
    assert message.startswith(f"x2 {best:.2f} dB in ") and "(bicubic " in message
    assert "samples added" in last_run(prefect_server, str(base / "dataset"))["state"]["message"]
    prefix = artifact_slug(str(base))
    shown = artifacts(prefect_server, prefix)
    assert re.search(r"bicubic +x2 +- ", shown[f"{prefix}-summary"]["data"])
    assert shown[f"{prefix}-picture"]["data"].startswith("data:image/webp;base64,")

    client = MlflowClient(uri)
    names = mlflow_names(base / "run")
    _assert_all_is_in_mlflow(client, names, base, record.rows[1].psnr)
    _assert_page_shows(base / "report.html", photos)
    in_mlflow = client.download_artifacts(names.parent, "report.html", str(tmp_path))
    assert Path(in_mlflow).read_bytes() == (base / "report.html").read_bytes()

    done = base / "run" / "stages" / "warmup" / "done.json"
    before = done.stat().st_mtime_ns
    again = full(recipe)
    assert done.stat().st_mtime_ns == before
    assert [row.psnr for row in again.rows] == [row.psnr for row in record.rows]
    assert last_run(prefect_server, str(base / "dataset"))["state"]["message"] == "nothing new"
    said = last_run(prefect_server, str(base / "run"))["state"]["message"]
    assert said == "nothing new, all stages are done"

    words = ("evaluate", str(base / "run"), "--photos", str(photos), "--scales", "2")
    ended = invoke(*words, "--steps", "1", "--track", "--json")
    assert ended.code == 0 and ended.json["unsent"] == {} and "RGB" in ended.json["convention"]
    history = client.get_metric_history(names.parent, "eval/psnr_x2_nfe1")
    assert [(point.step, point.value) for point in history] == [(4, record.rows[1].psnr)] * 3
    parent = client.get_run(names.parent)
    assert (parent.info.status, parent.data.tags["eval.photos"]) == ("FINISHED", str(photos))
    assert invoke("status", str(base / "run"), "--json").json["evaluation"] == {
        name: value for name, value in parent.data.metrics.items() if name.startswith("eval/")
    }
