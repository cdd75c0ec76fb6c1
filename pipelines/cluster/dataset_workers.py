"""Turns a recipe and what a cluster has into the number and the size of its workers.

Knows numbers only: resources come in as Ray reports them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datagen.build.memory import worker_memory
from datagen.errors import FlowmapsrError
from datagen.settings import AutoencoderSettings, DatasetRecipe

Resources = Mapping[str, float]
"""Of one node: `CPU`, `GPU`, `memory` (bytes), as Ray names them."""


@dataclass(frozen=True)
class Workers:
    """How many workers, and what each takes."""

    count: int
    cpus: int
    gpus: float
    memory: int
    """Bytes, reserved and kept to."""

    @property
    def device(self) -> str:
        """Where their codec runs."""
        return "cuda" if self.gpus else "cpu"


def size_workers(recipe: DatasetRecipe, nodes: Sequence[Resources]) -> Workers:
    """The workers of a build on these nodes.

    A codec with weights gets a GPU for each worker where there are GPUs, and the CPUs of the node
    are shared out among them; else each worker is one CPU, since encoding there takes one thread.

    Raises FlowmapsrError when no node can hold a single worker.
    """
    gpus = _gpus_per_worker(recipe, nodes)
    usable = [node for node in nodes if node.get("GPU", 0) >= gpus]
    cpus = recipe.cpus_per_worker or _cpus_beside(gpus, usable)
    memory = worker_memory(recipe, threads=cpus)
    room = sum(_fits(node, cpus=cpus, gpus=gpus, memory=memory) for node in nodes)
    if not room:
        raise FlowmapsrError(
            f"a worker of this build takes {_words(cpus, gpus, memory)}, and no node of the Ray "
            f"cluster has that much ({_largest(nodes)}); lower cpus_per_worker, gpus_per_worker "
            "or filters.max_megapixels, or add a larger node"
        )
    wanted = room if recipe.workers == "auto" else recipe.workers
    return Workers(count=min(wanted, room), cpus=cpus, gpus=gpus, memory=memory)


def _gpus_per_worker(recipe: DatasetRecipe, nodes: Sequence[Resources]) -> float:
    if recipe.gpus_per_worker is not None:
        return recipe.gpus_per_worker
    has_weights = isinstance(recipe.codec, AutoencoderSettings)
    return 1.0 if has_weights and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0


def _cpus_beside(gpus: float, nodes: Sequence[Resources]) -> int:
    if not gpus or not nodes:
        return 1
    return max(1, min(int(node.get("CPU", 0) // (node["GPU"] // gpus)) for node in nodes))


def _fits(node: Resources, *, cpus: int, gpus: float, memory: int) -> int:
    rooms = [node.get("CPU", 0) / cpus, node.get("memory", 0) / memory]
    if gpus:
        rooms.append(node.get("GPU", 0) / gpus)
    return int(min(rooms))


def _words(cpus: int, gpus: float, memory: int) -> str:
    gpu = f"{gpus:g} GPU, " if gpus else ""
    return f"{cpus} CPU, {gpu}{memory / 1e9:.1f} GB of memory"


def _largest(nodes: Sequence[Resources]) -> str:
    if not nodes:
        return "it has no node"
    best = max(nodes, key=lambda node: (node.get("CPU", 0), node.get("memory", 0)))
    return "the largest: " + _words(
        int(best.get("CPU", 0)), best.get("GPU", 0), int(best.get("memory", 0))
    )
