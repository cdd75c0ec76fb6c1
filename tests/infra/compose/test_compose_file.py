"""What compose.yaml and the scripts beside it promise, as far as no container daemon is needed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ports import free_port

COMPOSE = Path(__file__).parents[3] / "infra/compose"
SETTINGS = dict(
    line.split("=", 1) for line in (COMPOSE / ".env").read_text().splitlines() if "=" in line
)
TEXT = (COMPOSE / "compose.yaml").read_text()
FILE: dict[str, Any] = yaml.safe_load(
    re.sub(r"\$\{(\w+)\}", lambda found: SETTINGS[found[1]], TEXT)
)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
PORTS = [name for name in SETTINGS if name.endswith("_PORT")]


def test_servers_can_be_reached_from_this_machine_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert sorted(published) == sorted(
        f"127.0.0.1:{SETTINGS[name]}:{inner}"
        for name, inner in zip(PORTS, (5000, 4200, 8333, 9090), strict=True)
    )
    assert not any("network_mode" in service for service in SERVICES.values())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_limits_is_started_again_and_asked_whether_it_is_well(name: str) -> None:
    service = SERVICES[name]
    assert {"mem_limit", "cpus", "pids_limit", "logging"} <= service.keys()
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name == "buckets":  # ends by itself
        assert service["restart"] == "on-failure"
    else:
        assert service["restart"] == "unless-stopped"
        assert "healthcheck" in service or "HEALTH_URL" in service["environment"]


def test_secrets_are_files_only() -> None:
    for service in SERVICES.values():
        mounted = set(service.get("secrets", ()))
        values = [value for value in service.get("environment", {}).values()]
        used = {value.removeprefix("/run/secrets/") for value in values if "/secrets/" in value}
        words = re.findall(r"/run/secrets/(\S+)", str(service.get("command", "")))
        assert used | set(words) == mounted
        for variable in service.get("environment", {}):
            if re.search("PASSWORD|SECRET|AUTH_STRING|TOKEN|CREDENTIALS", variable):
                assert variable.endswith(("_FILE", "_PATH")), variable


def test_secrets_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make = [str(COMPOSE / "make-secrets"), str(folder)]
    subprocess.run(make, check=True, capture_output=True)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert made.keys() == FILE["secrets"].keys()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len({made[name] for name in made}) == len(made)
    for identity in yaml.safe_load(made["s3.json"])["identities"]:
        assert identity["credentials"][0]["secretKey"] in made[f"s3_{identity['name']}"]

    (folder / "ray_token").unlink()
    subprocess.run(make, check=True, capture_output=True)
    again = {path.name: path.read_text() for path in folder.iterdir()}
    assert {name for name in made if made[name] != again[name]} == {"ray_token"}


def up(tmp_path: Path, *, daemon: bool, **settings: str) -> str:
    """The one line in which infra/compose/up says what is wrong, beside a client of a daemon that
    answers to everything, or to nothing."""
    client = tmp_path / "docker"
    client.write_text(f"#!/bin/sh\nexit {0 if daemon else 1}\n")
    client.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run(
        [str(COMPOSE / "up")],
        env={**os.environ, "PATH": path, **settings},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    return line


def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path) -> None:
    assert "start Docker" in up(tmp_path, daemon=False)
    secrets = tmp_path / "secrets"
    missing = up(tmp_path, daemon=True, SECRETS=str(secrets))
    assert "is missing: run infra/compose/make-secrets" in missing
    subprocess.run([COMPOSE / "make-secrets", secrets], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"MLFLOW_PORT": str(free_port()), "PREFECT_PORT": str(port)}
        told = up(tmp_path, daemon=True, SECRETS=str(secrets), **ports)
    assert told.startswith(f"port {port} is taken") and f"PREFECT_PORT={port + 1}" in told
