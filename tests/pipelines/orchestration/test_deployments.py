"""`flowmapsr deploy` against a real Prefect server with a real worker: schedule, cancel, loss."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prefect.settings import PREFECT_API_URL, temporary_settings

from datagen.dataset.manifest import load_manifest, open_state
from datagen.review.verify import verify_dataset
from pipelines.flows.deployable import FLOWS
from pipelines.orchestration.deployment_text import description
from pipelines.orchestration.guard import artifact_slug
from pipelines.recipes.load import RECIPE_OF_FLOW, dataset_recipe
from pipelines.recipes.overrides import RecipeError
from tests.pipelines.conftest import write_training
from tests.support.eventually import eventually
from tests.support.models import saved_model
from tests.support.prefect_servers import Server, running_server, running_worker
from tests.support.processes import kill_tree
from tests.support.ray_processes import ray_actors
from tests.support.tiny import MODEL, WARMUP
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageRecord
from training.run_dir.starts import read_starts
from training.settings.model import ModelSettings

Run = Callable[..., Any]
POOL = "test pool"
SECRET = "wJalrXUtnFEMI"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def worker(
    server: Server, ray_cluster_address: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    folder = tmp_path_factory.mktemp("worker")
    env = {"RAY_ADDRESS": ray_cluster_address, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with running_worker(server, POOL, env=env, folder=folder) as worker:
        yield worker


@pytest.fixture
def deploy(server: Server, flowmapsr: Run) -> Run:
    """Runs `flowmapsr deploy demo ...` and returns its result."""

    def run(*words: str) -> dict[str, Any]:
        env = {**server.env, "AWS_SECRET_ACCESS_KEY": SECRET}
        ended = flowmapsr("deploy", "demo", *words, "--pool", POOL, "--json", env=env)
        assert ended.code == 0, ended.err
        result = ended.json
        assert isinstance(result, dict)
        return result

    return run


def settings(photos: Path, output: Path, *more: str) -> list[str]:
    return [f"sources=[{photos}]", f"output={output}", "samples_per_shard=3", *more]


def records(output: Path) -> dict[Path, int]:
    """Every committed record with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in output.glob("shards/*/*.json")}


def test_the_server_holds_the_whole_recipe_and_no_secret(
    server: Server, deploy: Run, photos: Path, tmp_path: Path
) -> None:
    words = settings(photos, tmp_path / "My Set", "seed=11")
    deployed = deploy(*words, "--interval", "1h")
    name = artifact_slug(str(tmp_path / "My Set"))
    assert deployed["deployment"] == f"dataset/{name}" and name.startswith("my-set-")

    held = server.get(f"/deployments/{deployed['id']}")
    recipe = dataset_recipe("demo", words).model_dump(mode="json")
    assert held["parameters"] == {"recipe": recipe}
    assert held["entrypoint"] == "pipelines.flows.dataset.build_dataset"
    assert held["global_concurrency_limit"]["limit"] == 1
    assert held["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert server.get(f"/work_pools/{POOL}")["type"] == "process"
    assert SECRET not in json.dumps(held)
    for words_shown in (f"from `{photos}`", f"to `{tmp_path}/My Set`", "prefect flow-run cancel"):
        assert words_shown in held["description"]
    assert f"prefect deployment run 'dataset/{name}'" in held["description"]

    eventually(lambda: server.runs(deployed["id"], "Scheduled"))
    first = server.runs(deployed["id"], "Scheduled")[0]["expected_start_time"]
    assert datetime.fromisoformat(first) == datetime.fromisoformat(deployed["next_run"])
    assert datetime.fromisoformat(first).minute == 0

    again = deploy(*words, "--cron", "0 3 * * *", "--timezone", "Asia/Tokyo")
    assert again["id"] == deployed["id"]
    (schedule,) = server.get(f"/deployments/{deployed['id']}")["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == (
        "0 3 * * *",
        "Asia/Tokyo",
    )
    assert schedule["id"] == again["schedule_id"] and schedule["id"] in again["commands"]["pause"]
    assert datetime.fromisoformat(again["next_run"]).hour == 3

    heartbeat = f"{server.env['PREFECT_API_URL']}/work_pools/{POOL}/workers/heartbeat"
    httpx.post(heartbeat, json={"name": "a worker"}).raise_for_status()
    last = deploy(*words, "--now")
    assert (again["started"], again["has_worker"]) == (None, False)
    assert last["has_worker"] and last["started"] in {
        run["name"] for run in server.runs(deployed["id"], "Scheduled")
    }
    assert (last["schedule"], last["next_run"]) == (None, None)
    assert server.get(f"/deployments/{deployed['id']}")["schedules"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_scheduled_run_picks_up_only_new_photos(
    server: Server, deploy: Run, worker: object, photos: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "incoming", tmp_path / "set"
    shutil.copytree(photos, folder)
    words = settings(folder, output, "samples_per_photo=1")
    deployed = deploy(*words, "--interval", "5s")
    eventually(lambda: server.runs(deployed["id"], "Completed"))
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    first = load_manifest(str(output))
    assert first.num_samples == 6

    done = len(server.runs(deployed["id"], "Completed"))
    eventually(lambda: len(server.runs(deployed["id"], "Completed")) > done)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before

    Image.open(folder / "photo0.png").rotate(180).save(folder / "new.png")
    eventually(lambda: load_manifest(str(output)).num_samples == 7)
    deploy(*words)  # no longer scheduled
    shards = {path: path.stat().st_mtime_ns for path in output.glob("shards/*/*")}
    assert {path: time for path, time in shards.items() if path in before} == {
        path: time for path, time in before.items() if path in shards
    }
    assert open_state(str(output), first.digest) == (first, str(output))  # for trainings on it
    assert len(shards) == 2 + len([path for path in before if path.parent.parent.name == "shards"])
    said = [run["state"]["message"] for run in server.runs(deployed["id"], "Completed")]
    assert said[0] == "6 samples added" and "nothing new" in said
    assert verify_dataset(str(output)) == []
    assert not server.runs(deployed["id"], "Failed", "Crashed")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cancelled_run_stops_cleanly_and_the_next_one_finishes(
    server: Server, deploy: Run, worker: object, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "set"
    deployed = deploy(*settings(photos, output, "samples_per_photo=48", "workers=1"))
    run = server.start_run(deployed["id"])
    eventually(lambda: records(output))
    cancel = [sys.executable, "-m", "prefect", "flow-run", "cancel", run]
    subprocess.run(cancel, env={**os.environ, **server.env}, check=True, capture_output=True)
    eventually(lambda: server.state(run) == "Cancelled")
    assert server.get(f"/flow_runs/{run}")["name"] == f"{output}: stopped"
    before = records(output)
    assert not (output / "manifest.json").exists()
    assert [path for path in output.rglob("*") if path.name.startswith(".")] == []
    assert ray_actors("_PoolWorker") == []

    again = server.start_run(deployed["id"])
    eventually(lambda: server.state(again) == "Completed")
    assert verify_dataset(str(output)) == []
    assert {path: records(output)[path] for path in before} == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cancelled_training_saves_and_the_next_run_continues(
    server: Server, flowmapsr: Run, worker: object, dataset: Path, tmp_path: Path
) -> None:
    # Enough that it is still training when the cancellation arrives, some seconds later.
    stages = [{**WARMUP, "steps": 800, "checkpoint_every_steps": 800}]
    values = {"model": MODEL, "stages": stages, "workers": 2}
    recipe = write_training(tmp_path / "tiny.json", values)
    run = tmp_path / "run"
    words = ("--flow", "training", f"manifest={dataset}", f"output={run}", "--pool", POOL, "--json")
    ended = flowmapsr("deploy", recipe, *words, env=server.env)
    assert ended.code == 0, ended.err
    deployed = ended.json
    assert deployed["deployment"].startswith("training/")

    first = server.start_run(deployed["id"])
    home = run / "stages" / "warmup"
    eventually((home / "progress.json").exists)
    cancel = [sys.executable, "-m", "prefect", "flow-run", "cancel", first]
    subprocess.run(cancel, env={**os.environ, **server.env}, check=True, capture_output=True)
    eventually(lambda: server.state(first) == "Cancelled")
    (saved,) = (home / "checkpoints").glob("step-*")
    step = int(saved.name.removeprefix("step-"))
    assert 0 < step < 800
    assert not (home / "done.json").exists()

    second = server.start_run(deployed["id"])
    eventually(lambda: server.state(second) == "Completed")
    assert StageRecord.model_validate_json((home / "done.json").read_bytes()).steps == 800
    assert [start.step for start in read_starts(StagePaths(run, "warmup"))] == [0, step]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deployed_benchmark_writes_its_results(
    server: Server, flowmapsr: Run, worker: object, photos: Path, tmp_path: Path
) -> None:
    model = saved_model(tmp_path / "m", ModelSettings.model_validate(MODEL), trained=True)
    output = tmp_path / "out"
    words = (f"models=[{model}]", f"photos={photos}", f"output={output}", "scales=[2]")
    options = ("--flow", "benchmark", "metrics=[]", "--pool", POOL, "--json")
    ended = flowmapsr("deploy", "table3", *words, *options, env=server.env)
    assert ended.code == 0, ended.err
    held = server.get(f"/deployments/{ended.json['id']}")
    assert held["entrypoint"] == "pipelines.flows.benchmark.benchmark"
    assert "Compares models." in held["description"] and f"`{photos}`" in held["description"]
    run = server.start_run(ended.json["id"])
    eventually(lambda: server.state(run) == "Completed")
    assert len((output / "results.jsonl").read_text().splitlines()) == 6 * (1 + 3)
    found = server.get(f"/flow_runs/{run}")
    assert found["state"]["message"] == "1 model, 4 of 4 chunks measured"
    again = server.start_run(ended.json["id"])
    eventually(lambda: server.state(again) == "Completed")
    said = server.get(f"/flow_runs/{again}")["state"]["message"]
    assert said == "1 model, nothing new"


@pytest.mark.timeout(600)
def test_a_server_killed_in_the_middle_costs_a_warning(
    server: Server,
    deploy: Run,
    worker: object,
    photos: Path,
    tmp_path: Path,
    ray_cluster_address: str,
    start: Run,
    finished: Run,
) -> None:
    """Last in this file: it kills the server of a command and of a worker's run."""
    by_worker, by_command = tmp_path / "by-worker", tmp_path / "by-command"
    deployed = deploy(*settings(photos, by_worker, "samples_per_photo=48", "workers=1"))
    server.start_run(deployed["id"])
    eventually(lambda: records(by_worker))
    held = ray_actors("_PoolWorker")  # neither build may be over before the server is killed
    for actor in held:
        actor.suspend()
    env = {**server.env, "RAY_ADDRESS": ray_cluster_address}
    words = settings(photos, by_command, "samples_per_photo=48", "workers=1")
    process = start("dataset", "build", "demo", *words, "--json", env=env)
    eventually(lambda: records(by_command))
    kill_tree(server.process)
    assert held and not (by_worker / "manifest.json").exists()
    assert not (by_command / "manifest.json").exists()
    for actor in held:
        actor.resume()

    ended = finished(process)
    assert ended.code == 0, ended.err
    assert ended.json["num_samples"] == 6 * 48
    assert "Prefect does not answer" in ended.err and "Traceback" not in ended.err
    assert verify_dataset(str(by_command)) == []
    eventually((by_worker / "manifest.json").exists)
    assert verify_dataset(str(by_worker)) == []


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--cron", "0 3 * * *", "--interval", "6h"], 2, "give one of them"),
        (["--cron", "at three"], 2, "--cron 'at three'"),
        (["--interval", "6 hours"], 2, "such as 15m or 6h"),
        (["--interval", "0m"], 2, "such as 15m or 6h"),
        (["--interval", "6h", "--timezone", "Mars/Base"], 2, "Mars/Base"),
        (["workers=0"], 2, "workers"),
        ([], 1, "set PREFECT_API_URL"),
        (["codec.kind=autoencoder_kl", "codec.source=https://me:word@host/vae"], 2, "password"),
    ],
)
def test_a_refused_deployment_says_why(
    words: list[str], code: int, expected: str, photos: Path, tmp_path: Path, invoke: Run
) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        ended = invoke("deploy", "demo", *settings(photos, tmp_path / "set"), *words)
    assert ended.code == code
    assert expected in ended.err and "Traceback" not in ended.err


def test_a_server_that_does_not_answer_is_named(
    photos: Path, tmp_path: Path, flowmapsr: Run
) -> None:
    env = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    ended = flowmapsr("deploy", "demo", *settings(photos, tmp_path / "set"), env=env)
    assert (ended.code, ended.out) == (1, "")
    assert "PREFECT_API_URL=http://127.0.0.1:9" in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize("flow", ["dataset", "training", "full"])
def test_every_field_of_the_form_has_a_description(flow: str) -> None:
    form = FLOWS[flow].parameters.model_dump()
    models = [form, *form["definitions"].values()]
    fields = {name: field for model in models for name, field in model["properties"].items()}
    assert len(fields) > 20
    bare = {name for name, field in fields.items() if not field.get("description")}
    assert bare <= {"kind"}, bare  # which has one value, or says which model it is


@pytest.mark.parametrize(
    ("flow", "shown"),
    [
        ("dataset", ["from `/photos`", "to `/out`", " a photo, side"]),
        ("training", ["from `/set`", "to `/out`", "warmup ("]),
        ("full", ["from `/photos`", "to `/out`", " a photo, side", "warmup (", "`/held-out`"]),
    ],
)
def test_a_deployment_says_from_where_to_where(flow: str, shown: list[str]) -> None:
    given = {
        "dataset": ["sources=[/photos]", "output=/out"],
        "training": ["manifest=/set", "output=/out"],
        "full": ["dataset.sources=[/photos]", "output=/out", "evaluation.photos=/held-out"],
    }
    text = description(RECIPE_OF_FLOW[flow]("demo", given[flow]), f"{flow}/out-1")
    for words in (*shown, f"prefect deployment run '{flow}/out-1'", "flowmapsr deploy"):
        assert words in text


def test_a_dry_run_needs_no_server(photos: Path, tmp_path: Path, invoke: Run) -> None:
    words = settings(photos, tmp_path / "set", "seed=5", "--dry-run", "--json")
    assert invoke("deploy", "demo", *words).json["seed"] == 5


def test_a_recipe_without_a_dataset_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "only.yaml"
    recipe.write_text("training:\n  seed: 1\n")
    with pytest.raises(RecipeError, match="dataset"):
        dataset_recipe(str(recipe))
