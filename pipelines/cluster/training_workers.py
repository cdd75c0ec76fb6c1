"""Turns a training recipe and what a cluster has into the workers to ask for.

Knows numbers only: resources come in as Ray reports them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datagen.errors import FlowmapsrError
from pipelines.cluster.dataset_workers import Resources
from training.settings.recipe import TrainingRecipe


@dataclass(frozen=True)
class Placement:
    """The group of workers that trains a run."""

    least: int
    most: int
    cpus: int
    gpus: int
    """Of each worker, as `cpus`."""
    strategy: str
    """Ray's name for how workers are laid over nodes."""

    @property
    def resources(self) -> dict[str, float]:
        """Of each worker, as Ray names them."""
        gpus = {"GPU": float(self.gpus)} if self.gpus else {}
        return {"CPU": float(self.cpus), **gpus}

    def room(self, nodes: Sequence[Resources]) -> int:
        """How many such workers fit on these nodes."""
        return sum(
            int(min(node.get(name, 0) / need for name, need in self.resources.items()))
            for node in nodes
        )

    def waiting(self, free: Resources, nodes: Sequence[Resources]) -> str:
        """What the cluster has for workers that have not begun to train, for a person."""
        short = [
            f"{name} {free.get(name, 0):g} of {sum(node.get(name, 0) for node in nodes):g} free"
            for name, need in self.resources.items()
            if free.get(name, 0) < need * self.least
        ]
        return f"starting {_words(self.least, self)}{'; now ' if short else ''}{', '.join(short)}"


def place_workers(recipe: TrainingRecipe, nodes: Sequence[Resources]) -> Placement:
    """The workers of a run on a cluster of these nodes.

    Raises:
        FlowmapsrError: the cluster has not even room for the least number, and so never will.
    """
    gpus = recipe.gpus_per_worker
    if gpus is None:
        gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    placement = Placement(
        least=recipe.least_workers,
        most=recipe.most_workers,
        cpus=recipe.cpus_per_worker,
        gpus=gpus,
        strategy=recipe.placement.upper(),
    )
    room = placement.room(nodes)
    if room < placement.least:
        on_cpu = "; gpus_per_worker=0 trains on the CPU" if gpus else ""
        raise FlowmapsrError(
            f"the run asks for {_words(placement.least, placement)}, but the Ray cluster has room "
            f"for {room}; it has {_cluster(nodes)}. Lower workers or cpus_per_worker, or add nodes"
            f"{on_cpu}"
        )
    return placement


def _words(count: int, placement: Placement) -> str:
    workers = "1 worker" if count == 1 else f"{count} workers"
    gpu = f" and {placement.gpus} GPU" if placement.gpus else ""
    return f"{workers} of {placement.cpus} CPU{gpu}"


def _cluster(nodes: Sequence[Resources]) -> str:
    each = [f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes]
    return f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}: {'; '.join(each)}"
