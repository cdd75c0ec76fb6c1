"""All systems, by the kind of their model settings."""

from __future__ import annotations

from datagen.errors import FlowmapsrError
from training.elir.system import ElirSystem
from training.flowmap.system import FlowMapSystem
from training.system_protocol import System


def system_of(kind: str) -> System:
    """The system that trains, reads and runs models of a kind.

    Raises:
        FlowmapsrError: there is none, as for the model folder of a newer flowmapsr.
    """
    match kind:
        case "flowmap":
            return FlowMapSystem()
        case "elir":
            return ElirSystem()
        case _:
            raise FlowmapsrError(
                f"model.kind={kind!r} is not known to this flowmapsr (it knows flowmap and elir): "
                "use the flowmapsr that wrote it"
            )
