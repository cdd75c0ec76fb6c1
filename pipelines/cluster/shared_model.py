"""A model folder that the nodes of a Ray cluster share, as the command sees it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import ray

from datagen.errors import FlowmapsrError
from training.inference.made import sha256
from training.inference.upscaler import Upscaler
from training.restorer_protocol import LoadOptions
from training.weights.model_folder import CONFIG


@dataclass(frozen=True)
class SharedModel:
    """Where a model lies, and how workers load it."""

    folder: str
    """Absolute path of a model folder."""
    digest: str
    """Of its config."""
    options: LoadOptions

    @classmethod
    def at(cls, folder: Path, options: LoadOptions) -> SharedModel:
        return cls(str(folder), _digest_of(folder), options)

    def load(self) -> Upscaler:
        """
        Raises:
            FlowmapsrError: this node does not see the model.
        """
        if _digest_of(self.folder) != self.digest:
            raise FlowmapsrError(
                f"{this_node()} does not see the model {self.folder}, or sees another one there: "
                "with --cluster it must be in a folder that all nodes share"
            )
        return Upscaler.from_pretrained(self.folder, **asdict(self.options))

    def bytes(self) -> int:
        """Of its files."""
        return sum(path.stat().st_size for path in Path(self.folder).iterdir() if path.is_file())


def this_node() -> str:
    """For people."""
    return f"node {ray.util.get_node_ip_address()}"


def _digest_of(folder: str | Path) -> str:
    path = Path(folder, CONFIG)
    return sha256(path.read_bytes()) if path.is_file() else ""
