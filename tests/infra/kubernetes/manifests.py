"""Reads kustomizations as `kubectl kustomize` does, as far as `infra/kubernetes` needs it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

KUBERNETES = Path(__file__).parents[3] / "infra/kubernetes"
KUSTOMIZATIONS = ("overlays/cpu-small", "overlays/gpu", "jobs/dataset", "jobs/training")

Document = dict[str, Any]


class Pod(NamedTuple):
    """A pod that Kubernetes or KubeRay will make."""

    name: str
    metadata: Document
    spec: Document

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.get("labels", {})


def read(folder: Path) -> list[Document]:
    """Everything that a kustomization consists of."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    documents: list[Document] = []
    for resource in kustomization["resources"]:
        path = folder / resource
        documents += read(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    documents = json.loads(json.dumps(documents))  # so that what an anchor repeats is its own
    for patch in kustomization.get("patches", []):
        (target,) = [one for one in documents if _is(one, **patch["target"])]
        for change in yaml.safe_load(patch["patch"]):
            _apply(target, change)
    images = {image["name"]: image for image in kustomization.get("images", [])}
    for document in documents:
        for pod in pods([document]):
            for container in pod.spec["containers"]:
                if container["image"] in images:
                    image = images[container["image"]]
                    container["image"] = f"{image['newName']}:{image['newTag']}"
        if "namespace" in kustomization and document["kind"] != "Namespace":
            document["metadata"]["namespace"] = kustomization["namespace"]
    return documents


def pods(documents: list[Document]) -> Iterator[Pod]:
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        for path, template in _templates(document.get("spec", {})):
            yield Pod(f"{name}{path}", template.get("metadata", {}), template["spec"])


def _templates(value: Any, path: str = "") -> Iterator[tuple[str, Document]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("template", "submitterPodTemplate"):
                yield path, inner
            else:
                yield from _templates(inner, f"{path}/{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _templates(inner, path)


def _is(document: Document, *, kind: str, name: str) -> bool:
    return (document["kind"], document["metadata"]["name"]) == (kind, name)


def _apply(document: Document, change: Document) -> None:
    """A change of JSON Patch."""
    parent, name = _place(document, change["path"])
    match change["op"]:
        case "remove":
            del parent[name]
        case "replace":
            assert parent[name] is not None
            parent[name] = change["value"]
        case "add":
            parent[name] = change["value"]
        case "copy":
            source, at = _place(document, change["from"])
            parent.insert(name, copy.deepcopy(source[at]))


def _place(document: Document, path: str) -> tuple[Any, Any]:
    *parents, last = path.removeprefix("/").replace("~1", "/").split("/")
    place: Any = document
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    return place, int(last) if isinstance(place, list) else last
