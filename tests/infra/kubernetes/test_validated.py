"""Programs read the manifests as a cluster would: `kubectl` makes them, schemas of Kubernetes and a
linter judge them.

Not in `make test`. `kubectl` is a package of its own; `pip install kubernetes-validate checkov`
belongs into another environment, whose folder of programs is added to PATH.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.infra.kubernetes.manifests import KUBERNETES, KUSTOMIZATIONS, Document, pods, read

pytestmark = pytest.mark.kubernetes


@pytest.fixture(scope="module", params=KUSTOMIZATIONS)
def made(request: pytest.FixtureRequest) -> list[Document]:
    text = _run("kubectl", "kustomize", str(KUBERNETES / request.param)).stdout
    documents = [one for one in yaml.safe_load_all(text) if one]
    assert _sorted(documents) == _sorted(read(KUBERNETES / request.param))  # our own reader
    return documents


def test_the_schemas_of_kubernetes_are_kept(made: list[Document], tmp_path: Path) -> None:
    assert _validate(made, tmp_path) == ""


@pytest.mark.parametrize(
    ("said", "field"), [("replica", "replicas"), ("enabledServiceLinks", "enableServiceLinks")]
)
def test_a_misspelt_field_is_found(said: str, field: str, tmp_path: Path) -> None:
    documents = read(KUBERNETES / "base")
    mlflow = next(one for one in documents if one["kind"] == "Deployment")
    spec = mlflow["spec"] if field == "replicas" else mlflow["spec"]["template"]["spec"]
    spec[said] = spec.pop(field)
    assert said in _validate(documents, tmp_path)


def test_the_linter_finds_nothing(made: list[Document], tmp_path: Path) -> None:
    policies = [one for one in read(KUBERNETES / "base") if one["kind"] == "NetworkPolicy"]
    assert _lint([*made, *policies], tmp_path) == ""


def test_the_linter_finds_a_container_without_limits(tmp_path: Path) -> None:
    documents = read(KUBERNETES / "jobs/training")
    pod = next(pod for pod in pods(documents) if pod.name.endswith("workerGroupSpecs"))
    del pod.spec["containers"][0]["resources"]["limits"]
    assert "Memory limits should be set" in _lint(documents, tmp_path)


def test_the_servers_know_their_options() -> None:
    """In the manifests `--option=value` follows the words of the command."""
    for pod in pods(read(KUBERNETES / "base")):
        for container in pod.spec["containers"]:
            words = [word for word in container.get("args", []) if not word.startswith("-")]
            if words[:1] == ["work-for-prefect"]:  # the image's, around that
                assert words[1:] == ["ray-head-svc:6379", "flowmapsr"]
                words = ["prefect", "worker", "start"]
            if words:
                known = _run(*words, "--help").stdout
                given = [one for one in container["args"] if one.startswith("--")]
                assert [one for one in given if one.partition("=")[0] not in known] == []


def _validate(documents: list[Document], folder: Path) -> str:
    """What is wrong by the schemas, which know no RayCluster and no RayJob: their pods only."""
    path = _known(documents, folder)
    done = _run("kubernetes-validate", "--strict", str(path), check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in lines if not line.startswith("INFO"))


def _lint(documents: list[Document], folder: Path) -> str:
    path = _known(documents, folder)
    configuration = str(KUBERNETES / "checkov.yaml")
    done = _run(
        *("checkov", "--framework", "kubernetes", "--file", path.name),
        *("--config-file", configuration, "--quiet", "--compact"),
        check=False,
        folder=folder,
    )
    assert "Passed checks: " in done.stdout, done.stderr
    return "" if done.returncode == 0 else done.stdout


def _known(documents: list[Document], folder: Path) -> Path:
    """A file of them, with pods in the place of what only KubeRay knows."""
    known = [one for one in documents if not one["apiVersion"].startswith("ray.io")]
    unknown = [one for one in documents if one["apiVersion"].startswith("ray.io")]
    for number, pod in enumerate(pods(unknown)):
        metadata = {**pod.metadata, "name": f"ray-{number}", "namespace": "flowmapsr"}
        known.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec})
    path = folder / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(known))
    return path


def _run(
    *words: str, check: bool = True, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=check, cwd=folder, capture_output=True, text=True)


def _sorted(documents: list[Document]) -> list[Document]:
    return sorted(documents, key=lambda one: (one["kind"], one["metadata"]["name"]))
