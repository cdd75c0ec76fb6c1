"""Photos to dataset through a real Prefect server and a real Ray cluster, with real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import Manifest, load_manifest
from datagen.review.verify import verify_dataset
from datagen.settings import DatasetRecipe
from pipelines.orchestration.guard import artifact_slug
from pipelines.recipes.load import dataset_recipe
from tests.support.eventually import eventually
from tests.support.files import digests
from tests.support.pair_pictures import pairs_of, write_pair
from tests.support.prefect_servers import artifacts, last_run, log_lines
from tests.support.ray_processes import ray_actors

Words = Callable[..., list[str]]
NOWHERE = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "RAY_ADDRESS": "127.0.0.1:9"}
"""Servers that do not answer."""


@pytest.fixture(scope="session")
def servers(prefect_server: str, ray_cluster_address: str) -> dict[str, str]:
    """Addresses with which a command uses the session's servers instead of starting its own."""
    return {"PREFECT_API_URL": prefect_server, "RAY_ADDRESS": ray_cluster_address}


def build(words: list[str]) -> None:
    build_recipe(dataset_recipe(words[2], words[3:]))


def build_recipe(recipe: DatasetRecipe) -> Manifest:
    """The flow in this process, on the session's servers."""
    from pipelines.flows.dataset import build_dataset

    return build_dataset(recipe)


@pytest.fixture(scope="module")
def reference(
    servers: dict[str, str], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The dataset that one undisturbed worker builds."""
    output = tmp_path_factory.mktemp("reference") / "set"
    settings = [
        f"sources=[{photos}]",
        f"output={output}",
        "samples_per_photo=4",
        "samples_per_shard=3",
        "validation_fraction=0",
    ]
    build(["dataset", "build", "demo", *settings, "workers=1"])
    return output


def wait_for_first_task(output: Path, process: subprocess.Popen[str] | None = None) -> None:
    eventually(lambda: done_tasks(output), process, seconds=120, poll=0.02)


def done_tasks(output: Path) -> set[str]:
    """The numbers of the tasks that need no more work: "000003"."""
    return {path.stem for path in output.glob("tasks/[0-9]*.json")}


def shard_records(output: Path) -> list[Path]:
    return [path for path in output.glob("shards/*/*.json") if ".summary" not in path.name]


def test_the_dataset_is_valid(reference: Path) -> None:
    assert verify_dataset(str(reference)) == []
    assert len(shard_records(reference)) == 8


def test_two_workers_make_the_same_bytes(
    reference: Path, tmp_path: Path, build_words: Words
) -> None:
    build(build_words(tmp_path / "set", "workers=2"))
    assert digests(tmp_path / "set") == digests(reference)


def test_pairs_registered_on_the_cluster_give_the_bytes_of_one_process(
    servers: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(16):  # fewer chunks would stay in the process of the flow
        write_pair(folder, number)
    settings = {"pairs": pairs_of(folder), "output": str(tmp_path / "set"), "workers": 2}
    settings |= {"samples_per_photo": 1, "samples_per_shard": 4, "latents": [], "lq_pixels": "full"}
    asked = dataset_recipe("demo", settings)
    manifest = build_recipe(asked)
    alone = asked.model_copy(update={"output": str(tmp_path / "alone")})
    assert manifest.num_samples == 16
    assert manifest.digest == build_in_process(alone).digest


def test_a_worker_killed_in_the_middle_changes_nothing(
    reference: Path, tmp_path: Path, build_words: Words
) -> None:
    output, killed = tmp_path / "set", []

    def kill_one() -> None:
        wait_for_first_task(output)
        for process in ray_actors("_PoolWorker")[:1]:
            process.kill()
            killed.append(process.pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    build(build_words(output, "workers=2"))
    killer.join()
    assert killed
    assert digests(output) == digests(reference)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_stopped_command_continues(
    number: int,
    code: int,
    reference: Path,
    tmp_path: Path,
    servers: dict[str, str],
    build_words: Words,
    start: Callable[..., subprocess.Popen[str]],
    finished: Callable[..., object],
    flowmapsr: Callable[..., object],
) -> None:
    words = build_words(tmp_path / "set", "workers=1", "--json")
    process = start(*words, env=servers)
    wait_for_first_task(tmp_path / "set", process)
    process.send_signal(number)
    ended = finished(process)
    assert ended.code == code
    assert not (tmp_path / "set" / "manifest.json").exists()
    if code > 0:
        assert "flowmapsr dataset build demo" in ended.json["error"]
        assert "To continue" in ended.err
    done = done_tasks(tmp_path / "set")
    before = {
        path: path.stat().st_mtime_ns
        for path in shard_records(tmp_path / "set")
        if path.stem.split("-")[-1] in done
    }
    assert before
    if number == signal.SIGKILL:
        again = flowmapsr(*words, env=servers)
        assert again.code == 0, again.err
        assert again.json["num_samples"] == 24
    else:
        build(words[:-1])
    assert digests(tmp_path / "set") == digests(reference)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_complete_dataset_needs_no_servers(
    reference: Path, build_words: Words, flowmapsr: Callable[..., object]
) -> None:
    before = digests(reference)
    ended = flowmapsr(*build_words(reference, "workers=2"), env=NOWHERE)
    assert ended.code == 0, ended.err
    assert "complete already" in ended.out and "Next: flowmapsr train" in ended.out
    assert digests(reference) == before
    store = MlflowClient()
    experiment = store.get_experiment_by_name("datasets")
    assert experiment is not None
    query = f"tags.output = '{reference}'"
    assert len(store.search_runs([experiment.experiment_id], query)) == 1  # of the one that built


def test_a_build_is_refused_when_prefect_is_not_there(
    tmp_path: Path, build_words: Words, flowmapsr: Callable[..., object]
) -> None:
    ended = flowmapsr(*build_words(tmp_path / "set"), env=NOWHERE)
    assert ended.code == 1
    assert f"PREFECT_API_URL={NOWHERE['PREFECT_API_URL']}" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "set").exists()


def test_inspect_and_verify_report_the_contents(
    reference: Path, tmp_path: Path, invoke: Callable[..., object]
) -> None:
    inspected = invoke("dataset", "inspect", str(reference), "--json").json
    assert (inspected["num_samples"], inspected["buckets"][0]["bucket"]) == (24, "128x128")
    verified = invoke("dataset", "verify", str(reference), "--json")
    assert verified.json == {"ok": True, "faults": []}
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(reference), str(broken)], check=True)
    shard = sorted(broken.glob("shards/*/*.tar"))[0]
    shard.write_bytes(shard.read_bytes().replace(b"hq.jpg", b"hq.jpq", 1))
    ended = invoke("dataset", "verify", str(broken), "--json")
    assert ended.code == 1 and not ended.json["ok"]
    assert shard.name in str(ended.json["faults"])


def test_bad_images_are_left_out_up_to_the_limit(
    photos: Path,
    tmp_path: Path,
    servers: dict[str, str],
    flowmapsr: Callable[..., object],
) -> None:
    folder = tmp_path / "mixed"
    subprocess.run(["cp", "-r", str(photos), str(folder)], check=True)
    whole = (folder / "photo0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "none.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    words = ["dataset", "build", "demo", f"sources=[{folder}]", "samples_per_photo=1", "--json"]

    refused = flowmapsr(*words, f"output={tmp_path}/strict", env=servers)
    assert refused.code == 1
    assert "max_rejected_fraction=0.1" in refused.json["error"]
    assert refused.json["rejected"] == {"empty file": 1, "too small": 1}
    assert "Traceback" not in refused.err
    assert not (tmp_path / "strict" / "manifest.json").exists()

    build([*words[:-1], f"output={tmp_path}/lenient", "max_rejected_fraction=0.5"])
    manifest = load_manifest(f"{tmp_path}/lenient")
    assert (manifest.num_samples, manifest.rejected.count) == (6, 3)
    assert len((tmp_path / "lenient" / "rejected.jsonl").read_text().splitlines()) == 3

    prefix = artifact_slug(f"{tmp_path}/lenient")
    shown = artifacts(servers["PREFECT_API_URL"], prefix)
    assert shown[f"{prefix}-progress"]["data"] == 100
    assert "7 of 7 samples" in shown[f"{prefix}-progress"]["description"]  # one of them rejected
    summary = shown[f"{prefix}-summary"]["data"]
    assert "| this run | 6 samples added, 3 photos left out |" in summary
    assert "| samples in all | 6, " in summary
    assert "| new photos | 7 |" in summary and "none: the dataset is new" in summary
    assert f"| digest after | `{manifest.digest}` |" in summary and "mlflow.db |" in summary
    for reason in manifest.rejected.by_reason:
        assert f"| {reason} | 1 | 1 |" in summary
    kind, picture = shown[f"{prefix}-picture"]["data"].split(",")
    assert kind == "data:image/webp;base64"
    with Image.open(BytesIO(b64decode(picture))) as small:
        assert small.format == "WEBP" and small.width <= 900
    assert len(picture) < 300_000  # noise, which no format makes small

    run = last_run(servers["PREFECT_API_URL"], str(tmp_path / "lenient"))
    assert run["state"]["message"] == "6 samples added, 3 photos left out"
    assert run["name"] == f"{tmp_path}/lenient: 6 samples added, 3 photos left out"
    lines = log_lines(servers["PREFECT_API_URL"], run["id"], wanted="6 samples added")
    assert any(line.startswith("plan: 7 samples of 7 new photos in ") for line in lines), lines
    assert any(line.startswith("100 %: 7 of 7 samples, ") for line in lines)
    build([*words[:-1], f"output={tmp_path}/lenient", "max_rejected_fraction=0.5"])
    again = last_run(servers["PREFECT_API_URL"], str(tmp_path / "lenient"))
    assert again["id"] != run["id"] and again["state"]["message"] == "nothing new"


@pytest.mark.parametrize(
    ("output", "tracked"), [("/data/set", "sqlite:////data/mlflow.db"), ("s3://bucket/set", "")]
)
def test_a_cluster_build_is_tracked_next_to_the_dataset_by_default(
    output: str, tracked: str, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.flows import dataset

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    logged = []
    monkeypatch.setattr(
        dataset, "log_dataset", lambda *_, seconds: logged.append(os.environ["MLFLOW_TRACKING_URI"])
    )
    recipe = dataset_recipe("demo", ["sources=[/photos]", f"output={output}"])
    dataset._track(recipe, load_manifest(str(reference)), seconds=1.0)
    assert logged == [tracked]
