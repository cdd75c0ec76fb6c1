"""Turns a training recipe and the nodes of a cluster into the group of workers to ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datagen.errors import FlowmapsrError
from pipelines.cluster.worker_request import Resources, WorkerRequest, describe_nodes
from training.settings.recipe import TrainingRecipe


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
