"""What the supervisor and the stack know of any server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

HOST = "127.0.0.1"
USER = "flowmapsr"
"""The name that goes with every password."""
ANSWER_SECONDS = 5


@dataclass(frozen=True)
class Server:
    """One program that is kept running."""

    name: str
    address: str
    command: tuple[str, ...]
    is_well: Callable[[], bool]
    """Asks it with its password; raises FlowmapsrError where waiting cannot help."""
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    """Servers without which it cannot come up."""
    make_contents: Callable[[], None] | None = None
    """Called once it is well, at every start: makes what others need in it, where it is missing."""
    system_user: str | None = None
    """Whom it runs as, if not the user of the command."""
    stop_signal: str = "TERM"
