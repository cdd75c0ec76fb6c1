"""What KubeRay 1.7 knows of RayCluster and RayJob, as far as our manifests use it; nothing else
passes. Its definitions are in no package, and no Kubernetes server refuses a wrong field here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(_Strict):
    mode: Literal["token"]
    secretName: str


class SecretKey(_Strict):
    name: str
    key: str


class ValueFrom(_Strict):
    secretKeyRef: SecretKey


class Credential(_Strict):
    valueFrom: ValueFrom


class GcsFaultToleranceOptions(_Strict):
    redisAddress: str
    redisPassword: Credential


class HeadGroupSpec(_Strict):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class WorkerGroupSpec(HeadGroupSpec):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class RayClusterSpec(_Strict):
    rayVersion: str
    authOptions: AuthOptions
    gcsFaultToleranceOptions: GcsFaultToleranceOptions | None = None
    headGroupSpec: HeadGroupSpec
    workerGroupSpecs: list[WorkerGroupSpec] = Field(min_length=1)


class RayJobSpec(_Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode"]
    submitterPodTemplate: dict[str, Any]
    runtimeEnvYAML: str | None = None


class JobOnOtherCluster(RayJobSpec):
    """Such a job cannot end the cluster, and has one attempt."""

    clusterSelector: dict[Literal["ray.io/cluster"], str]


class JobWithCluster(RayJobSpec):
    rayClusterSpec: RayClusterSpec
    backoffLimit: int
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: int


class RayCluster(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: dict[str, Any]
    spec: RayClusterSpec


class RayJob(_Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, Any]
    spec: JobWithCluster | JobOnOtherCluster


MODELS: dict[str, type[BaseModel]] = {"RayCluster": RayCluster, "RayJob": RayJob}
