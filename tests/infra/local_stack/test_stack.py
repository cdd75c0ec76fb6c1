"""The whole stack as real processes: up, used, killed in parts, down."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
from botocore.exceptions import ClientError
from mlflow import MlflowClient

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.errors import NoServerError
from datagen.io import s3_client, storage
from datagen.review.verify import verify_dataset
from infra.local_stack.folder import StackFolder
from infra.local_stack.supervisor import left_over
from pipelines.orchestration.pool_worker import RUN_ID
from pipelines.servers import PREFECT, RAY, check_servers
from tests.support.eventually import eventually
from tests.support.tiny import dataset_recipe, write_photos

NAMES = ["postgres", "s3", "mlflow", "prefect", "ray", "prefect-worker"]
LONG_BUILD = ("samples_per_photo=99", "samples_per_shard=2", "buckets.budgets=[{side: 256}]")
pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


class CommandLine:
    """`flowmapsr stack ... --folder FOLDER --json`, in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.folder = StackFolder(root)

    def __call__(self, *words: str, code: int | None = 0) -> dict[str, object]:
        command = [sys.executable, "-m", "pipelines.cli", "stack", *words, "--json"]
        done = subprocess.run(
            [*command, "--folder", str(self.folder.root)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert code in (None, done.returncode), done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def states(self) -> dict[str, str]:
        servers: Any = self("status", code=None)["servers"]
        return {server["name"]: server["state"] for server in servers}


@pytest.fixture(scope="module")
def stack() -> Iterator[CommandLine]:
    """A stack that is up. Its folder is not below pytest's own, which the user whom Postgres runs
    as where the tests are root cannot reach."""
    root = Path(tempfile.mkdtemp(prefix="flowmapsr-stack-"))
    call = CommandLine(root)
    try:
        call("up")
        yield call
    finally:
        call("down", "--wipe", "--yes")
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def variables(stack: CommandLine) -> Mapping[str, str]:
    return {name: str(value) for name, value in stack("env").items()}


def _status(address: str, login: str | None = None) -> int:
    """The code of a server's answer to a user and password, or to none."""
    request = urllib.request.Request(address)
    if login is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_every_server_is_well_and_asks_for_its_password(
    stack: CommandLine, variables: Mapping[str, str]
) -> None:
    assert stack.states() == dict.fromkeys(NAMES, "running")

    runs = f"{variables['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    user, password = (variables[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD"))
    assert [_status(runs), _status(runs, f"{user}:no"), _status(runs, f"{user}:{password}")] == [
        401,
        401,
        200,
    ]
    flows = f"{variables['PREFECT_API_URL']}/admin/version"
    login = variables["PREFECT_API_AUTH_STRING"]
    assert [_status(flows), _status(flows, "x:no"), _status(flows, login)] == [401, 401, 200]
    with pytest.raises(ClientError, match="SignatureDoesNotMatch|403"):
        _s3({**variables, "AWS_SECRET_ACCESS_KEY": "no"}).list_buckets()


def test_a_wrong_password_or_token_is_told_before_work_starts(
    variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_servers(RAY, PREFECT)
    assert not caplog.messages
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 48)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "flowmapsr:no")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "no")
    with pytest.raises(NoServerError) as refused:
        check_servers(RAY, PREFECT)
    for said, server in zip(str(refused.value).splitlines(), (RAY, PREFECT), strict=True):
        assert f"at {server}={variables[server]} refuses this command" in said
    assert "MLFLOW_TRACKING_URI=" in caplog.text and "refuses this command" in caplog.text


def _s3(variables: Mapping[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_DEFAULT_REGION"],
    )


def _prefect(variables: Mapping[str, str], path: str, body: object) -> Any:
    user, password = variables["PREFECT_API_AUTH_STRING"].split(":")
    url = f"{variables['PREFECT_API_URL']}/{path}"
    answer = httpx.post(url, json=body, auth=(user, password), timeout=60)
    return answer.raise_for_status().json()


def _deployments(variables: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(one["name"], one["id"]) for one in _prefect(variables, "deployments/filter", {})]


def _shards(variables: Mapping[str, str]) -> list[str]:
    found = _s3(variables).list_objects_v2(Bucket="flowmapsr", Prefix="lost/shards/")
    return [one["Key"] for one in found.get("Contents", ())]


def test_ray_takes_a_job_with_its_token_and_no_other(variables: Mapping[str, str]) -> None:
    job = (
        "import ray; ray.init(log_to_driver=False); print(ray.get(ray.remote(lambda: 6).remote()))"
    )

    def answer(more: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **variables, **more}
        return subprocess.run(
            [sys.executable, "-c", job],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert answer({}).stdout == "6\n"
    wrong = answer({"RAY_AUTH_TOKEN": "0" * 48})
    assert wrong.returncode != 0 and "auth" in wrong.stderr.lower()


def test_nothing_listens_beyond_this_machine(stack: CommandLine) -> None:
    own = {process.pid for process in left_over(stack.folder)}
    for process in left_over(stack.folder):
        own |= {child.pid for child in process.children(recursive=True)}
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.pid in own
    }
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_secrets_are_for_the_owner_alone(stack: CommandLine, variables: Mapping[str, str]) -> None:
    folder = stack.folder
    secret = [variables[name] for name in variables if "SECRET" in name or "PASSWORD" in name]
    secret.append(folder.secrets().postgres)
    kept = [path for path in folder.root.iterdir() if path.is_file()]
    holding = [path for path in kept if any(one in path.read_text() for one in secret)]
    assert holding
    assert {path.name for path in holding if path.stat().st_mode & 0o077} == set()
    for log in folder.logs.iterdir():
        text = log.read_text(errors="replace")
        assert not any(one in text for one in secret), log


def test_what_died_is_started_again_with_its_data(
    stack: CommandLine, variables: Mapping[str, str]
) -> None:
    _s3(variables).put_object(Bucket="flowmapsr", Key="kept", Body=b"bytes")
    (weed,) = [one for one in left_over(stack.folder) if one.name() == "weed"]
    weed.kill()

    eventually(lambda: stack.states()["s3"] == "running", poll=1)
    before = _pids(stack)
    stack("up")  # takes up what runs
    assert _pids(stack) == before
    assert _s3(variables).get_object(Bucket="flowmapsr", Key="kept")["Body"].read() == b"bytes"


def _pids(stack: CommandLine) -> list[int]:
    servers: Any = stack("status")["servers"]
    return [server["pid"] for server in servers]


def test_a_run_that_ended_with_its_worker_or_with_the_stack_goes_on(
    stack: CommandLine, variables: Mapping[str, str], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        shutil.copy(str(files("skimage") / "data" / name), photos)
    words = ("demo", f"sources=[{photos}]", "output=s3://flowmapsr/lost")
    subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "deploy", *words, *LONG_BUILD],
        env={**os.environ, **variables},
        check=True,
    )
    (deployment,) = _prefect(variables, "deployments/filter", {})
    run = _prefect(variables, f"deployments/{deployment['id']}/create_flow_run", {})["id"]

    def at_work() -> psutil.Process:
        """The process of the run, once it has added shards."""

        def found() -> list[psutil.Process]:
            return [one for one in left_over(stack.folder) if one.environ().get(RUN_ID) == run]

        eventually(found, seconds=60, poll=0.5)
        count = len(_shards(variables))
        eventually(lambda: len(_shards(variables)) > count, seconds=120, poll=0.5)
        (process,) = found()
        return process

    process = at_work()
    psutil.Process(_pids(stack)[NAMES.index("prefect-worker")]).kill()
    process.kill()
    assert at_work() != process
    stack("down")
    stack("up")
    at_work()

    def is_completed() -> bool:
        (found,) = _prefect(variables, "flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        assert found["state_type"] not in ("FAILED", "CRASHED", "CANCELLED"), found["state"]
        return bool(found["state_type"] == "COMPLETED")

    eventually(is_completed, seconds=300, poll=1)


def test_orphans_of_a_killed_supervisor_are_ended_and_ports_stay(
    stack: CommandLine, variables: Mapping[str, str]
) -> None:
    psutil.Process(int((stack.folder.root / "supervisord.pid").read_text())).kill()
    assert set(stack.states().values()) == {"stopped"}
    stack("up")
    assert stack.states() == dict.fromkeys(NAMES, "running")
    assert stack("env") == dict(variables)


def test_down_leaves_no_process_and_keeps_the_data(stack: CommandLine) -> None:
    assert left_over(stack.folder)
    stack("down")
    assert left_over(stack.folder) == []
    assert (stack.folder.postgres / "PG_VERSION").is_file()
    assert set(stack.states().values()) == {"stopped"}
    stack("down", "--wipe", code=1)  # nobody is there to be asked
    assert stack.folder.root.is_dir()


def test_a_backup_is_put_back_into_a_new_stack(
    stack: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = tmp_path / "backup"

    def connect() -> dict[str, str]:
        found = {name: str(value) for name, value in stack("env").items()}
        for name, value in found.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(s3_client, "_clients", {})
        return found

    stack("up")
    before = connect()
    recipe = dataset_recipe(write_photos(tmp_path / "photos", 3), tmp_path)
    recipe = recipe.model_copy(update={"output": "s3://flowmapsr/set"})
    manifest = build_in_process(recipe)
    client = MlflowClient(before["MLFLOW_TRACKING_URI"])
    run = client.create_run("0").info.run_id
    client.log_metric(run, "loss", 0.5)
    client.log_text(run, "kept in S3", "note.txt")
    flow = _prefect(before, "flows/", {"name": "dataset"})["id"]
    _prefect(before, "deployments/", {"name": "nightly", "flow_id": flow})
    deployments = _deployments(before)

    built = storage.list_files("s3://flowmapsr/set")
    count = stack("backup", str(backup))["objects"]
    objects = [json.loads(line) for line in (backup / "objects.jsonl").read_text().splitlines()]
    kept = {f"s3://{one['bucket']}/{one['key']}" for one in objects}  # also of other tests
    assert kept >= set(built) and any("note.txt" in uri for uri in kept) and count == len(kept)
    assert backup.stat().st_mode & 0o077 == 0
    held = subprocess.run(["grep", "-rlaF", before["MLFLOW_TRACKING_PASSWORD"], backup])
    assert held.returncode == 1, "a password is in the backup"
    assert "is not empty" in str(stack("backup", str(backup), code=1)["error"])
    assert "keeps data already" in str(stack("restore", str(backup), code=1)["error"])

    stack("down", "--wipe", "--yes")
    stack("up")
    assert connect()["MLFLOW_TRACKING_PASSWORD"] != before["MLFLOW_TRACKING_PASSWORD"]
    damaged = next((backup / "objects").iterdir())
    whole = damaged.read_bytes()
    damaged.write_bytes(b"")
    assert "is missing or damaged" in str(stack("restore", str(backup), code=1)["error"])
    damaged.write_bytes(whole)
    stack("restore", str(backup))

    assert stack.states() == dict.fromkeys(NAMES, "running")
    assert verify_dataset("s3://flowmapsr/set") == []
    assert load_manifest("s3://flowmapsr/set") == manifest
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert client.get_run(run).data.metrics == {"loss": 0.5}
    kept = Path(client.download_artifacts(run, "note.txt", str(tmp_path)))
    assert kept.read_text() == "kept in S3"
    assert _deployments(os.environ) == deployments
