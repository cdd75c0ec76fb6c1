"""What has to hold of every manifest; each rule names what breaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from pipelines.cluster.train_launcher import SAVE_SECONDS
from tests.infra.kubernetes.kuberay import MODELS
from tests.infra.kubernetes.manifests import Document, Pod, pods

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY|CREDENTIALS|password|token")
PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s$]+@")


def faults(documents: list[Document], secrets: dict[str, set[str]]) -> list[str]:
    """All that is wrong.

    Args:
        secrets: the keys of each secret that is made elsewhere.
    """
    rules = (_fields_of_kuberay, _no_secret_in_clear, _denied_by_default)
    found = [fault for rule in rules for fault in rule(documents)]
    for pod in pods(documents):
        for each in (_restricted, _limited, _ends_in_order, _mounts(secrets)):
            found += [f"{pod.name}: {fault}" for fault in each(pod)]
    return found


def _fields_of_kuberay(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if document["apiVersion"].startswith("ray.io"):
            try:
                MODELS[document["kind"]].model_validate(document)
            except ValidationError as error:
                for one in error.errors():
                    yield f"{document['kind']}: {'.'.join(map(str, one['loc']))}: {one['msg']}"


def _no_secret_in_clear(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if document["kind"] == "Secret":
            yield f"Secret/{document['metadata']['name']} belongs in no manifest"
        values = list((document.get("data") or {}).items())
        for pod in pods([document]):
            for container in pod.spec["containers"]:
                values += [(one["name"], one.get("value", "")) for one in container.get("env", [])]
                values += [("args", word) for word in container.get("args", [])]
        for name, value in values:
            is_path = name.endswith(("_FILE", "_PATH"))
            if (SECRET.search(name) and not is_path) or PASSWORD_IN_URL.search(value):
                yield f"{document['metadata']['name']}: {name} is in clear"


def _denied_by_default(documents: list[Document]) -> Iterator[str]:
    policies = [one["spec"] for one in documents if one["kind"] == "NetworkPolicy"]
    if not any(one["kind"] == "Namespace" for one in documents):
        return  # a job: the namespace is there, with its policies
    nothing = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    if nothing not in policies:
        yield "no NetworkPolicy denies everything that no other allows"
    (namespace,) = [one for one in documents if one["kind"] == "Namespace"]
    if namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] != "restricted":
        yield "the namespace does not enforce Pod Security restricted"
    accounts = [one for one in documents if one["kind"] == "ServiceAccount"]
    if any(one["automountServiceAccountToken"] for one in accounts):
        yield "a ServiceAccount hands out its token"
    if kinds := {one["kind"] for one in documents} & {"Role", "ClusterRole", "RoleBinding"}:
        yield f"accounts have no rights: {kinds}"


def _restricted(pod: Pod) -> Iterator[str]:
    """Pod Security "restricted", and no token of Kubernetes."""
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of Kubernetes"
    if pod.spec.get("serviceAccountName") != "flowmapsr":
        yield "does not run as the account without rights"
    user = pod.spec.get("securityContext", {})
    if not (user.get("runAsNonRoot") is True and user.get("runAsUser") == 10001):
        yield "does not run as the image's user 10001"
    if user.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    if any(pod.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares what belongs to its host"
    kinds = {name for volume in pod.spec["volumes"] for name in volume} - {"name"}
    if other := kinds - {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}:
        yield f"mounts {other}"
    for container in pod.spec["containers"]:
        context = container.get("securityContext", {})
        confined = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if context != confined:
            yield f"{container['name']} is not confined: {context}"


def _limited(pod: Pod) -> Iterator[str]:
    for container in pod.spec["containers"]:
        for kind in ("requests", "limits"):
            given = container.get("resources", {}).get(kind, {})
            if not {"cpu", "memory"} <= set(given):
                yield f"{container['name']} has no {kind} of CPUs and memory"
    for volume in pod.spec["volumes"]:
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no limit"


def _ends_in_order(pod: Pod) -> Iterator[str]:
    """A node of Ray leaves a training time for a checkpoint, and one with GPUs is made for them."""
    if pod.labels.get("flowmapsr/ray-node") != "true":
        return
    (container,) = pod.spec["containers"]
    if container.get("lifecycle", {}).get("preStop") != {
        "exec": {"command": ["python", "-m", "infra.kubernetes.end_trainings"]}
    }:
        yield "does not end its trainings before it stops"
    if pod.spec.get("terminationGracePeriodSeconds", 30) < 2 * SAVE_SECONDS:
        yield "is killed before a checkpoint is saved"
    memory = [one["name"] for one in pod.spec["volumes"] if _in_memory(one)]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    if mounts.get("/dev/shm") not in memory:
        yield "has no /dev/shm of its own"
    if "nvidia.com/gpu" in container["resources"]["limits"]:
        if {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} not in (
            pod.spec.get("tolerations", [])
        ):
            yield "does not tolerate the taint of machines with GPUs"
        if "nvidia.com/gpu" not in container["resources"]["requests"]:
            yield "requests no GPUs"


def _in_memory(volume: Document) -> bool:
    return volume.get("emptyDir", {}).get("medium") == "Memory"


def _mounts(secrets: dict[str, set[str]]) -> Any:
    def rule(pod: Pod) -> Iterator[str]:
        """Every file of a secret that a container is told of is mounted there."""
        volumes = {one["name"]: one for one in pod.spec["volumes"]}
        for container in pod.spec["containers"]:
            places = {}
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{container['name']} mounts {mount['name']}, which is no volume"
                elif "secret" in volumes[mount["name"]]:
                    places[mount["mountPath"]] = volumes[mount["name"]]["secret"]["secretName"]
            for one in container.get("env", []):
                folder, _, key = one.get("value", "").rpartition("/")
                if one["name"].endswith(("_FILE", "_PATH")) and (
                    key not in secrets.get(places.get(folder, ""), set())
                ):
                    yield f"{one['name']}={one['value']} is no key of a mounted secret"

    return rule
