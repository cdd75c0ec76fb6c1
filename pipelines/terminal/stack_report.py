"""What `flowmapsr stack` prints: servers, variables, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.terminal.process_edge import VerbResult
from pipelines.terminal.text import command, counted, duration, table

if TYPE_CHECKING:
    from infra.local_stack.backup import Backup
    from infra.local_stack.stack import ServerState


def started(place: Path, chosen: Sequence[str], seconds: float) -> VerbResult:
    """Every server runs; `chosen` are the words that name a folder of the user's own."""
    use = f'eval "$({command("stack", "env", *chosen)})"'
    lines = [
        f"All servers are up after {duration(seconds)}; their data is in {place}.",
        f"Next: {use}",
    ]
    return VerbResult({"folder": str(place), "seconds": round(seconds, 1)}, lines)


def exported(variables: Mapping[str, str]) -> VerbResult:
    """Lines for a shell."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return VerbResult(variables, lines)


def shown(place: Path, chosen: Sequence[str], servers: Sequence[ServerState]) -> VerbResult:
    """How each server is, and what helps where one is not well."""
    rows = [
        (
            server.name,
            server.state,
            server.address,
            str(server.pid or "-"),
            "-" if server.seconds is None else duration(server.seconds),
        )
        for server in servers
    ]
    lines = table(("server", "state", "address", "pid", "for"), rows)
    ill = [server for server in servers if server.state != "running"]
    if ill:
        logged = [server.name for server in ill if server.state != "stopped"]
        hint = f" (its log: {command('stack', 'logs', logged[0], *chosen)})" if logged else ""
        lines.append(f"Next: {command('stack', 'up', *chosen)}{hint}")
    result = {"folder": str(place), "servers": [one.model_dump(mode="json") for one in servers]}
    return VerbResult(result, lines, ok=not ill)


def backed_up(backup: Path, made: Backup) -> VerbResult:
    """A copy of all that the servers keep."""
    lines = [
        f"The databases and {counted(made.objects, 'object')} ({made.bytes / 1e6:.1f} MB) are "
        f"copied to {backup}.",
        f"Back into an empty stack: {command('stack', 'restore', str(backup))}",
    ]
    return VerbResult({"backup": str(backup), **made.model_dump()}, lines)


def restored(place: Path, chosen: Sequence[str], backup: Path, found: Backup) -> VerbResult:
    """The stack keeps what the backup held."""
    lines = [
        f"{place} keeps what {backup} held: the databases and {counted(found.objects, 'object')}.",
        f'Next: eval "$({command("stack", "env", *chosen)})"',
    ]
    return VerbResult({"folder": str(place), "backup": str(backup), **found.model_dump()}, lines)


def stopped(place: Path, chosen: Sequence[str], *, wiped: bool) -> VerbResult:
    """No server runs any more."""
    data = f"{place} is removed" if wiped else f"their data stays in {place}"
    lines = [f"All servers have ended; {data}.", f"Next: {command('stack', 'up', *chosen)}"]
    return VerbResult({"folder": str(place), "wiped": wiped}, lines)
