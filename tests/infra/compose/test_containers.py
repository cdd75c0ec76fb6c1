"""compose.yaml, brought up: a scheduled build and a training go on through restarts of each part.

`pytest -m containers`; it takes a quarter of an hour beside the images. Where no Docker daemon
runs, root starts one for the tests (see `start-docker`).
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.config import Config
from PIL import Image

from tests.support.browser import CHROMIUM, browser, text_with
from tests.support.eventually import eventually
from tests.support.picture_files import saved
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "infra/compose"
PROJECT = "flowmapsr-test"
FILES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
COPIES, SAMPLES = 14, 96
"""Shifted ones of each photo, and samples of each: a build is at work while all is restarted."""
SERVERS = ("s3", "postgres", "mlflow", "prefect")
pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]


class Containers:
    """The project of these tests: its commands, servers and containers."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.secrets = folder / "secrets"
        self.ports = {name: free_port() for name in ("MLFLOW", "PREFECT", "S3")}
        self.environment = {
            **environment,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "POSTGRES_IMAGE": "flowmapsr-postgres",
            "S3_IMAGE": "flowmapsr-s3",
            "SECRETS": str(self.secrets),
            **{f"{name}_PORT": str(port) for name, port in self.ports.items()},
        }

    def run(self, *words: str | Path) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done.stdout

    def docker(self, *words: str) -> str:
        return self.run("docker", *words)

    def names(self, service: str) -> list[str]:
        """Of the service's containers."""
        labels = {"project": PROJECT, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={labels[name]}" for name in labels]
        return sorted(self.docker("ps", "-a", "--format={{.Names}}", *filters).split())

    def restart(self, service: str) -> None:
        self.docker("restart", "--time=60", *self.names(service)[:1])

    def flowmapsr(self, *words: str) -> str:
        """What a command in the worker's container prints, given again where that is restarted."""
        (worker,) = self.names("worker")
        while True:
            done = subprocess.run(
                ["docker", "exec", worker, "flowmapsr", *words],
                env=self.environment,
                capture_output=True,
                text=True,
            )
            if done.returncode == 0:
                return done.stdout
            restarted = done.returncode == 137 or " is not running" in done.stderr
            assert restarted or " is restarting" in done.stderr, done.stderr
            time.sleep(1)

    def ask(self, server: str, login: str, path: str, body: object = None) -> Any:
        """What a server answers, in JSON, once it does."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[server]}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
            },
        )
        while True:
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.load(answer)
            except OSError:  # it is being restarted; the test has a time limit
                time.sleep(1)

    def prefect(self, path: str, body: object = None) -> Any:
        return self.ask("PREFECT", (self.secrets / "prefect_login").read_text(), path, body)

    def deploy(self, *words: str) -> str:
        """The ID of a new deployment."""
        self.flowmapsr("deploy", *words)
        newest = {"sort": "CREATED_DESC", "limit": 1}
        (found,) = self.prefect("/api/deployments/filter", newest)
        return str(found["id"])

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Those that have begun, or were to begin, oldest first."""
        only = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found: list[dict[str, Any]] = self.prefect("/api/flow_runs/filter", only)
        return found

    def wait(self, deployment: str) -> None:
        """Returns when its first run is completed."""

        def ended() -> bool:
            state = self.runs(deployment)[0]["state"]
            assert state["type"] not in ("FAILED", "CRASHED", "CANCELLED"), state
            return bool(state["type"] == "COMPLETED")

        eventually(ended, seconds=900, poll=2)

    def s3(self) -> Any:
        keys = configparser.ConfigParser()
        keys.read(self.secrets / "s3_flowmapsr")
        address = f"http://127.0.0.1:{self.ports['S3']}"
        # It waits for a server that is being restarted.
        patient = Config(retries={"total_max_attempts": 15, "mode": "standard"})
        return boto3.client(
            "s3", endpoint_url=address, region_name="x", config=patient, **keys["default"]
        )


@pytest.fixture(scope="module")
def daemon() -> Iterator[dict[str, str]]:
    """The environment of a Docker client."""
    environment = dict(os.environ)
    if subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        yield environment
        return
    needed = ("dockerd", "docker", "docker-compose", "iptables", "debootstrap")
    if os.geteuid() != 0 or not all(map(shutil.which, needed)):
        pytest.skip(f"no Docker daemon runs, and to start one root needs {', '.join(needed)}")
    folder = Path(tempfile.mkdtemp(prefix="flowmapsr-docker-", dir="/var/tmp"))
    started = subprocess.run([Path(__file__).parent / "start-docker", folder])
    try:
        assert started.returncode == 0
        yield {**environment, "DOCKER_HOST": f"unix://{folder}/docker.sock"}
    finally:
        pid = (folder / "docker.pid").read_text()
        subprocess.run(["kill", pid], check=True)
        eventually(lambda: not Path(f"/proc/{pid}").exists())
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def containers(
    daemon: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containers]:
    """All of it, with two Ray workers and photos on S3."""
    found = Containers(tmp_path_factory.mktemp("compose"), daemon)
    for image in ("cpu", "postgres", "s3"):
        found.run(ROOT / "infra/images/build", image, "--network=host", "--quiet")
    found.run(COMPOSE / "make-secrets", found.secrets)
    down = ["docker-compose", "-f", str(COMPOSE / "compose.yaml"), "down", "--volumes"]
    try:
        found.run(COMPOSE / "up", "--scale", "ray-worker=2")
        for name in FILES:
            pixels = np.array(Image.open(str(files("skimage") / "data" / name)))
            for copy in range(COPIES):
                photo = saved(Image.fromarray(np.roll(pixels, 30 * copy, axis=1)), "JPEG")
                found.s3().put_object(Bucket="flowmapsr", Key=f"photos/{copy}{name}", Body=photo)
        yield found
    finally:
        found.run(*down)


@pytest.fixture(scope="module")
def dataset(containers: Containers) -> str:
    """The digest of one built by schedule, in peace."""
    build = (*build_of("set"), "--interval", "1m")
    deployment = containers.deploy(*build)
    eventually(lambda: containers.runs(deployment), poll=2)
    containers.wait(deployment)
    containers.prefect(f"/api/deployments/{deployment}/pause_deployment", {})
    return digest(containers, "set")


def build_of(name: str) -> tuple[str, ...]:
    settings = (f"samples_per_photo={SAMPLES}", "samples_per_shard=20", "workers=2")
    return ("demo", "sources=[s3://flowmapsr/photos]", f"output=s3://flowmapsr/{name}", *settings)


def digest(containers: Containers, name: str) -> str:
    address = f"s3://flowmapsr/{name}"
    containers.flowmapsr("dataset", "verify", address)
    found = json.loads(containers.flowmapsr("dataset", "inspect", address, "--json"))
    assert found["num_samples"] == SAMPLES * COPIES * len(FILES)
    return str(found["digest"])


def start(containers: Containers, deployment: str) -> None:
    containers.prefect(f"/api/deployments/{deployment}/create_flow_run", {})


def test_a_build_goes_on_through_restarts_of_each_part(
    containers: Containers, dataset: str
) -> None:
    deployment = containers.deploy(*build_of("restarted"))
    start(containers, deployment)
    pages = containers.s3().get_paginator("list_objects_v2")

    def shards() -> int:
        found = pages.paginate(Bucket="flowmapsr", Prefix="restarted/shards/")
        return sum(len(page.get("Contents", ())) for page in found)

    disturb(containers, deployment, shards)
    containers.wait(deployment)
    assert digest(containers, "restarted") == dataset


def test_a_training_goes_on_through_restarts_of_each_part(
    containers: Containers, dataset: str, tmp_path: Path
) -> None:
    steps = {"warmup": 500, "distill": 4, "guidance": 2, "adversarial": 4}
    deployment = containers.deploy(
        *("demo", "--flow", "training", "manifest=s3://flowmapsr/set", "output=/runs/one"),
        *("checkpoints=s3://flowmapsr/checkpoints", "stages.warmup.checkpoint_every_steps=20"),
        "stages.adversarial.adversarial.discriminator.warmup_steps=1",
        *(f"stages.{name}.steps={count}" for name, count in steps.items()),
    )
    start(containers, deployment)

    def step() -> int:
        progress = "/runs/one/stages/warmup/progress.json"
        (worker,) = containers.names("worker")
        found = subprocess.run(
            ["docker", "exec", worker, "cat", progress],
            env=containers.environment,
            capture_output=True,
        )
        return int(json.loads(found.stdout)["step"]) if found.returncode == 0 else 0

    disturb(containers, deployment, step)
    containers.wait(deployment)
    found = json.loads(containers.flowmapsr("status", "/runs/one", "--json"))
    assert {stage["stage"]: stage["step"] for stage in found["stages"]} == steps
    assert {stage["state"] for stage in found["stages"]} == {"done"}

    if CHROMIUM is None:
        pytest.skip("there is no Chromium to open the pages of MLflow and Prefect")
    pages = {name: f"127.0.0.1:{containers.ports[name]}" for name in ("MLFLOW", "PREFECT")}
    password, login = (
        (containers.secrets / name).read_text() for name in ("mlflow_password", "prefect_login")
    )
    with browser() as tab:
        tab.goto(f"http://flowmapsr:{password}@{pages['MLFLOW']}/")  # Chromium keeps the password
        text_with(tab, "Experiments")
        tab.goto(f"http://{pages['MLFLOW']}/#/experiments")
        text_with(tab, "datasets", "flowmapsr-demo")
        tab.goto(f"http://{pages['PREFECT']}/")
        text_with(tab, "Login")
        tab.evaluate(f"localStorage.setItem('prefect-password', btoa({login!r}))")
        tab.goto(f"http://{pages['PREFECT']}/runs")
        text_with(tab, "/runs/one", "s3://flowmapsr/set", "Completed")


def disturb(containers: Containers, deployment: str, progress: Any) -> None:
    """Restarts each part while the run of a deployment is at work, and kills a Ray worker."""

    def works() -> None:
        """Returns when there is progress."""
        before = progress()
        eventually(lambda: progress() > before, seconds=400, poll=1)
        assert containers.runs(deployment)[0]["state_type"] == "RUNNING"

    for server in SERVERS:
        works()
        containers.restart(server)
    works()
    killed = containers.names("ray-worker")[0]
    containers.docker("kill", killed)
    time.sleep(5)
    containers.docker("start", killed)
    for part in ("ray-head", "worker"):
        works()
        containers.restart(part)
    works()


def test_no_secret_is_in_an_image_or_a_setting(containers: Containers) -> None:
    history = containers.docker("history", "--no-trunc", "flowmapsr:cpu")
    image = json.loads(containers.docker("inspect", "flowmapsr:cpu"))[0]["Config"]
    assert image["User"] == "10001:10001"
    assert image["Labels"]["org.opencontainers.image.version"] == "0.1.0"
    assert len(image["Labels"]["org.opencontainers.image.revision"]) >= 40
    names = containers.docker("ps", "-q", f"--filter=label=com.docker.compose.project={PROJECT}")
    settings = containers.docker("inspect", *names.split())
    values = [path.read_text() for path in containers.secrets.glob("*_password")]
    values += [(containers.secrets / name).read_text() for name in ("prefect_login", "ray_token")]
    assert not [value for value in values if value in history or value in settings]


def test_of_s3_only_its_port_can_be_used_by_neighbors(containers: Containers) -> None:
    ask = (
        "import socket\n"
        "for port in 8333, 8080, 8888, 9333, 18080, 18888, 19333:\n"
        "    try: socket.create_connection(('s3', port), 5); print(port)\n"
        "    except ConnectionRefusedError: pass\n"
        "import grpc\n"
        "call = grpc.insecure_channel('s3:18333').unary_unary\n"
        "try: call('/messaging_pb.SeaweedS3IamCache/PutIdentity')(b'', timeout=10)\n"
        "except grpc.RpcError as error: print(error.code().name)\n"
    )
    (worker,) = containers.names("worker")
    assert containers.docker("exec", worker, "python", "-c", ask).split() == ["8333", "UNAVAILABLE"]
