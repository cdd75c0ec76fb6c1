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
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from infra.local_stack.folder import StackFolder
from infra.local_stack.supervisor import left_over
from tests.support.eventually import eventually

NAMES = ["postgres", "s3", "mlflow", "prefect", "ray", "prefect-worker"]
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


def _s3(variables: Mapping[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_DEFAULT_REGION"],
    )


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
