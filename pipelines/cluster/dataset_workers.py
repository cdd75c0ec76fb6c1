"""Turns a dataset recipe and the nodes of a cluster into the workers of a build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datagen.build.memory import worker_memory
from datagen.errors import FlowmapsrError
from datagen.settings import AutoencoderSettings, DatasetRecipe
from pipelines.cluster.worker_request import Resources, WorkerRequest, describe_nodes


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each asks for."""

    count: int
    each: WorkerRequest

    @property
    def device(self) -> str:
        """Where their codec runs."""
        return "cuda" if self.each.gpus else "cpu"


def plan_workers(recipe: DatasetRecipe, nodes: Sequence[Resources]) -> WorkerPlan:
    """The workers of a build on these nodes.

    A codec with weights gets a GPU for each worker where there are GPUs, and the CPUs of the node
    are divided among them; else each worker is one CPU, since encoding there takes one thread.

    Raises:
        FlowmapsrError: no node can hold a single worker.
    """
    gpus = _gpus_per_worker(recipe, nodes)
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= gpus]
    cpus = recipe.cpus_per_worker or _cpus_per_gpu(gpus, with_gpus)
    each = WorkerRequest(cpus, gpus, worker_memory(recipe, threads=cpus))
    most = each.fitting(nodes)
    if not most:
        raise FlowmapsrError(
            f"a worker of this build takes {each}, and no node of the Ray cluster has that much "
            f"({describe_nodes(nodes)}); lower cpus_per_worker, gpus_per_worker or "
            "filters.max_megapixels, or add a larger node"
        )
    wanted = most if recipe.workers == "auto" else recipe.workers
    return WorkerPlan(min(wanted, most), each)


def _gpus_per_worker(recipe: DatasetRecipe, nodes: Sequence[Resources]) -> float:
    if recipe.gpus_per_worker is not None:
        return recipe.gpus_per_worker
    has_weights = isinstance(recipe.codec, AutoencoderSettings)
    return 1.0 if has_weights and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0


def _cpus_per_gpu(gpus: float, nodes: Sequence[Resources]) -> int:
    if not gpus or not nodes:
        return 1
    return max(1, min(int(node.get("CPU", 0) // (node["GPU"] // gpus)) for node in nodes))
