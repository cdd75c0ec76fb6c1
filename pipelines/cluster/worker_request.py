"""What one worker asks Ray for, and how many such workers fit on the nodes of a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        return _words(self.resources)


def describe_nodes(nodes: Sequence[Resources]) -> str:
    """`3 nodes: 2 x (8 CPU), 1 x (16 CPU, 4 GPU)`, for a person."""
    kinds = Counter(_words(node) for node in nodes)
    each = ", ".join(f"{count} x ({kind})" for kind, count in kinds.items())
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}: {each or 'none'}"


def _words(resources: Resources) -> str:
    """`8 CPU, 1 GPU, 16.0 GB of memory`."""
    words = [f"{resources.get('CPU', 0):g} CPU"]
    if resources.get("GPU"):
        words.append(f"{resources['GPU']:g} GPU")
    if resources.get("memory"):
        words.append(f"{resources['memory'] / 1e9:.1f} GB of memory")
    return ", ".join(words)
