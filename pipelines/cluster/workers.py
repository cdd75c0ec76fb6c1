"""Turns a recipe and the nodes of a Ray cluster into the workers to ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datagen.build.memory import worker_memory
from datagen.errors import FlowmapsrError
from datagen.settings import AutoencoderSettings, DatasetRecipe
from training.settings.recipe import TrainingRecipe

Resources = Mapping[str, float]
"""Of one node: `CPU`, `GPU`, `memory` (bytes), as Ray names them."""


@dataclass(frozen=True)
class WorkerRequest:
    """The resources of one worker."""

    cpus: int
    gpus: float = 0
    memory: int = 0
    """Bytes, reserved and kept to; 0 reserves none."""

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them, without those that are 0."""
        asked = {"CPU": float(self.cpus), "GPU": self.gpus, "memory": float(self.memory)}
        return {name: amount for name, amount in asked.items() if amount}

    def fitting(self, nodes: Sequence[Resources]) -> int:
        """How many such workers fit on these nodes."""
        return sum(
            int(min(node.get(name, 0) / amount for name, amount in self.resources.items()))
            for node in nodes
        )

    def __str__(self) -> str:
        return in_words(self.resources)


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
    has_weights = bool(recipe.latents) and isinstance(recipe.codec, AutoencoderSettings)
    return 1.0 if has_weights and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0


def _cpus_per_gpu(gpus: float, nodes: Sequence[Resources]) -> int:
    if not gpus or not nodes:
        return 1
    return max(1, min(int(node.get("CPU", 0) // (node["GPU"] // gpus)) for node in nodes))


@dataclass(frozen=True)
class Placement:
    """The group of workers that trains a run."""

    least: int
    most: int
    each: WorkerRequest
    strategy: str
    """Ray's name for how workers are distributed over nodes."""

    def waiting(self, free: Resources, nodes: Sequence[Resources]) -> str:
        """What the cluster has for workers that have not begun to train, for a person."""
        short = [
            f"{name} {free.get(name, 0):g} of {sum(node.get(name, 0) for node in nodes):g} free"
            for name, amount in self.each.resources.items()
            if free.get(name, 0) < amount * self.least
        ]
        return f"starting {self}{'; now ' if short else ''}{', '.join(short)}"

    def __str__(self) -> str:
        return f"{self.least} worker{'' if self.least == 1 else 's'} with {self.each}"


def place_workers(recipe: TrainingRecipe, nodes: Sequence[Resources]) -> Placement:
    """The workers of a run on a cluster of these nodes.

    Raises:
        FlowmapsrError: not even the least number fits on the cluster.
    """
    gpus = recipe.gpus_per_worker
    if gpus is None:
        gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    placement = Placement(
        least=recipe.least_workers,
        most=recipe.most_workers,
        each=WorkerRequest(recipe.cpus_per_worker, gpus),
        strategy=recipe.placement.upper(),
    )
    fitting = placement.each.fitting(nodes)
    if fitting < placement.least:
        on_cpu = "; gpus_per_worker=0 trains on the CPU" if gpus else ""
        raise FlowmapsrError(
            f"the run asks for {placement}, but the Ray cluster fits {fitting}; it has "
            f"{describe_nodes(nodes)}. Lower workers or cpus_per_worker, or add nodes{on_cpu}"
        )
    return placement


def describe_nodes(nodes: Sequence[Resources]) -> str:
    """`3 nodes: 2 x (8 CPU), 1 x (16 CPU, 4 GPU)`, for a person."""
    kinds = Counter(in_words(node) for node in nodes)
    each = ", ".join(f"{count} x ({kind})" for kind, count in kinds.items())
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}: {each or 'none'}"


def in_words(resources: Resources) -> str:
    """`8 CPU, 1 GPU, 16.0 GB of memory`."""
    words = [f"{resources.get('CPU', 0):g} CPU"]
    if resources.get("GPU"):
        words.append(f"{resources['GPU']:g} GPU")
    if resources.get("memory"):
        words.append(f"{resources['memory'] / 1e9:.1f} GB of memory")
    return ", ".join(words)
