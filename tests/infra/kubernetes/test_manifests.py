"""The manifests for Kubernetes, read here. `pytest -m kubernetes` has programs of it read them."""

from __future__ import annotations

import os
import shlex
import subprocess
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from ray.scripts.scripts import start

from tests.infra.kubernetes.manifests import KUBERNETES, KUSTOMIZATIONS, Document, Pod, pods, read
from tests.infra.kubernetes.rules import faults
from tests.pipelines.test_documented_commands import parse

SECRETS = ("POSTGRES_PASSWORD", "S3_KEY", "S3_SECRET", "MLFLOW_S3_KEY", "MLFLOW_S3_SECRET")


@pytest.fixture(scope="module")
def secrets() -> dict[str, set[str]]:
    """The keys of each secret that `make-secrets` makes."""
    given = {name: 'quo"ted' for name in (*SECRETS, "REDIS_PASSWORD")}
    made = subprocess.run(
        [KUBERNETES / "make-secrets"],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    documents = [one for one in yaml.safe_load_all(made.stdout) if one]
    return {one["metadata"]["name"]: set(one["data"]) for one in documents}


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_no_manifest_breaks_a_rule(folder: str, secrets: dict[str, set[str]]) -> None:
    assert faults(read(KUBERNETES / folder), secrets) == []


def _misspell(documents: list[Document]) -> None:
    spec = _of(documents, "RayCluster")["spec"]
    spec["workerGroupSpecs"][0]["maxReplica"] = spec["workerGroupSpecs"][0].pop("maxReplicas")


def _number_for_text(documents: list[Document]) -> None:
    _of(documents, "RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _no_limits(documents: list[Document]) -> None:
    del _pod(documents, "Deployment/mlflow").spec["containers"][0]["resources"]["limits"]


def _password_in_clear(documents: list[Document]) -> None:
    _pod(documents, "Deployment/prefect").spec["containers"][0]["env"].append(
        {"name": "PGPASSWORD", "value": "hunter2"}
    )


def _password_in_url(documents: list[Document]) -> None:
    _pod(documents, "Deployment/mlflow").spec["containers"][0]["args"].append(
        "--backend-store-uri=postgresql://flowmapsr:hunter2@db/mlflow"
    )


def _secret(documents: list[Document]) -> None:
    documents.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}})


def _open_network(documents: list[Document]) -> None:
    documents[:] = [one for one in documents if one["metadata"]["name"] != "deny-all"]


def _root(documents: list[Document]) -> None:
    _pod(documents, "Deployment/mlflow").spec["securityContext"]["runAsNonRoot"] = False


def _token(documents: list[Document]) -> None:
    del _pod(documents, "Deployment/prefect").spec["automountServiceAccountToken"]


def _short_grace(documents: list[Document]) -> None:
    del _pod(documents, "RayCluster/ray/headGroupSpec").spec["terminationGracePeriodSeconds"]


def _no_file(documents: list[Document]) -> None:
    spec = _pod(documents, "Deployment/mlflow").spec
    (volume,) = [one for one in spec["volumes"] if "secret" in one]
    volume["secret"]["secretName"] = "client"


FAULTS = {
    "workerGroupSpecs.0.maxReplica: Extra inputs": _misspell,
    "rayStartParams.num-cpus: Input should be a valid string": _number_for_text,
    "mlflow has no limits of CPUs and memory": _no_limits,
    "PGPASSWORD is in clear": _password_in_clear,
    "args is in clear": _password_in_url,
    "Secret/keys belongs in no manifest": _secret,
    "no NetworkPolicy denies everything": _open_network,
    "does not run as the image's user": _root,
    "gets a token of Kubernetes": _token,
    "is killed before a checkpoint is saved": _short_grace,
    "mlflow_auth.ini is no key of a mounted secret": _no_file,
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_planted_fault_is_found(said: str, secrets: dict[str, set[str]]) -> None:
    documents = read(KUBERNETES / "overlays/gpu")
    FAULTS[said](documents)
    assert any(said in fault for fault in faults(documents, secrets))


@pytest.mark.parametrize("missing", SECRETS)
def test_a_secret_that_is_not_given_is_named(missing: str) -> None:
    given = {name: "a" for name in SECRETS if name != missing}
    refused = subprocess.run(
        [KUBERNETES / "make-secrets"], env={**os.environ, **given}, capture_output=True, text=True
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"set {missing}" in refused.stderr


def test_ray_and_flowmapsr_know_what_the_manifests_ask_of_them() -> None:
    options = {option.removeprefix("--") for one in start.params for option in one.opts}
    for folder in KUSTOMIZATIONS:
        for document in read(KUBERNETES / folder):
            if document["kind"] not in ("RayCluster", "RayJob"):
                continue
            spec = document["spec"]
            if "entrypoint" in spec:
                program, *words = shlex.split(spec["entrypoint"])
                assert program == "flowmapsr"
                parse(words)
            cluster = spec.get("rayClusterSpec", spec)
            if "headGroupSpec" in cluster:
                assert cluster["rayVersion"] == version("ray")
                for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                    assert set(group["rayStartParams"]) <= options


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        ("ray/cpu", "ray/head", 6379, True),
        ("ray/head", "ray/cpu", 34567, True),  # Ray's nodes choose ports
        ("prefect-worker", "ray/head", 6379, True),
        ("training/gpu", "training/head", 6379, True),
        ("ray/cpu", "mlflow", 5000, True),
        ("training/head", "mlflow", 5000, True),
        ("prefect-worker", "prefect", 4200, True),
        ("submitter", "training/head", 8265, True),
        ("submitter", "training/head", 6379, False),
        ("submitter", "mlflow", 5000, False),
        ("ray/cpu", "mlflow", 22, False),
        ("mlflow", "prefect", 4200, False),
        ("mlflow", "ray/head", 6379, False),
        ("prefect", "mlflow", 5000, False),
    ],
)
def test_who_may_connect_to_whom(source: str, target: str, port: int, expected: bool) -> None:
    documents = read(KUBERNETES / "overlays/gpu")
    policies = [one["spec"] for one in documents if one["kind"] == "NetworkPolicy"]
    labels = _labels([*documents, *read(KUBERNETES / "jobs/training")])
    ways = [("Egress", source, target), ("Ingress", target, source)]
    allowed = all(
        any(
            _selects(policy["podSelector"], labels[own])
            and way in policy["policyTypes"]
            and any(_opens(rule, way, labels[other], port) for rule in policy.get(way.lower(), []))
            for policy in policies
        )
        for way, own, other in ways
    )
    assert allowed == expected


def _opens(rule: Document, way: str, other: dict[str, str], port: int) -> bool:
    peers = rule["to" if way == "Egress" else "from"]
    ports = [one["port"] for one in rule.get("ports", [])] or [port]
    return port in ports and any(
        "namespaceSelector" not in peer and _selects(peer["podSelector"], other)
        for peer in peers
        if "podSelector" in peer
    )


def _selects(selector: Document, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def _labels(documents: list[Document]) -> dict[str, dict[str, str]]:
    found = {}
    for pod in pods(documents):
        kind, name, *rest = pod.name.split("/")
        group = ""
        if rest[-1:] == ["headGroupSpec"]:
            group = "/head"
        elif rest[-1:] == ["workerGroupSpecs"]:
            group = "/gpu" if kind == "RayJob" else "/cpu"
        found["submitter" if kind == "RayJob" and not rest else name + group] = pod.labels
    return found


def _of(documents: list[Document], kind: str) -> Any:
    return next(one for one in documents if one["kind"] == kind)


def _pod(documents: list[Document], name: str) -> Pod:
    return next(pod for pod in pods(documents) if pod.name == name)
