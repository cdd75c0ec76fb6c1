"""The commands `flowmapsr stack ...`. Imports nothing heavy at the top, like `cli.py`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datagen.errors import FlowmapsrError
from pipelines.terminal import stack_report
from pipelines.terminal.doing import doing, said_something
from pipelines.terminal.options import AsJson, PlainUsage
from pipelines.terminal.process_edge import VerbResult, process_edge
from training.monitoring.json_log import tell

if TYPE_CHECKING:
    from infra.local_stack.folder import StackFolder
    from infra.local_stack.stack import ServerState

Folder = Annotated[
    Path | None,
    typer.Option(help="Where the servers keep their data, if not in the user's data folder."),
]

stack_app = typer.Typer(name="stack", no_args_is_help=True, rich_markup_mode=None)


@stack_app.command("up", cls=PlainUsage)
def stack_up(folder: Folder = None, as_json: AsJson = False) -> None:
    """Start the servers that do not run yet.

    Postgres, S3, MLflow, Prefect with a worker, and Ray: on loopback, with passwords.

    \b
    Example:
      flowmapsr stack up
    """
    with process_edge(as_json=as_json) as out:
        from infra.local_stack.servers import require_packages
        from infra.local_stack.stack import Stack

        begun = time.monotonic()

        def on_server(state: ServerState) -> None:
            after = time.monotonic() - begun
            tell(f"{state.name:<15} {state.address:<32} {after:4.1f} s", server=state.name)
            said_something()

        require_packages()
        place = _place(folder)
        place.make()
        doing("starting the servers")
        with place.lock():
            Stack(place).up(on_server=on_server)
        out.say(stack_report.started(place.root, _words(folder), time.monotonic() - begun))


@stack_app.command("env", cls=PlainUsage)
def stack_env(folder: Folder = None, as_json: AsJson = False) -> None:
    """Print the variables with which commands use the servers.

    They hold passwords: they are for a shell, not for a log.

    \b
    Example:
      eval "$(flowmapsr stack env)"
    """
    with process_edge(as_json=as_json) as out:
        from infra.local_stack.stack import Stack

        out.say(stack_report.exported(Stack(_existing(folder)).environment()))


@stack_app.command("status", cls=PlainUsage)
def stack_status(folder: Folder = None, as_json: AsJson = False) -> None:
    """Show how each server is.

    Exit code 1 if one is not well.
    """
    with process_edge(as_json=as_json) as out:
        from infra.local_stack.stack import Stack

        place = _existing(folder)
        doing("asking the servers")
        out.say(stack_report.shown(place.root, _words(folder), Stack(place).status()))


@stack_app.command("logs", cls=PlainUsage)
def stack_logs(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="Such as mlflow.")],
    folder: Folder = None,
    lines: Annotated[int, typer.Option(min=1, help="How many, from the end.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the end of a server's log.

    \b
    Example:
      flowmapsr stack logs mlflow --lines 100
    """
    with process_edge(as_json=as_json) as out:
        from infra.local_stack.folder import last_lines

        found = last_lines(_existing(folder), server, lines)
        out.say(VerbResult({"server": server, "lines": found}, found))


@stack_app.command("backup", cls=PlainUsage)
def stack_backup(
    place: Annotated[Path, typer.Argument(metavar="BACKUP", help="A new folder for the copy.")],
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Copy what the servers keep into a folder, while they work.

    MLflow's and Prefect's databases and all objects of S3; no passwords.

    \b
    Example:
      flowmapsr stack backup /backups/monday
    """
    with process_edge(as_json=as_json) as out:
        from infra.local_stack.stack import Stack

        at, backup = _existing(folder), _absolute(place)
        doing("copying databases and objects")
        with at.lock():
            made = Stack(at).back_up(backup)
        out.say(stack_report.backed_up(backup, made))


@stack_app.command("restore", cls=PlainUsage)
def stack_restore(
    place: Annotated[Path, typer.Argument(metavar="BACKUP", help="The folder of a backup.")],
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup into a running stack that keeps nothing yet.

    \b
    Example:
      flowmapsr stack up --folder /data/new
      flowmapsr stack restore /backups/monday --folder /data/new
    """
    with process_edge(as_json=as_json) as out:
        from infra.local_stack.stack import Stack

        at, backup = _existing(folder), _absolute(place)
        doing("putting the backup back")
        with at.lock():
            found = Stack(at).restore(backup, on_server=lambda _: None)
        out.say(stack_report.restored(at.root, _words(folder), backup, found))


@stack_app.command("down", cls=PlainUsage)
def stack_down(
    folder: Folder = None,
    wipe: Annotated[
        bool, typer.Option("--wipe", help="Remove what the servers keep, after asking.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the servers. What they keep stays.

    With --wipe it is removed: runs in MLflow, objects in S3, schedules in Prefect.
    """
    agreed = yes or not wipe or _agrees(folder)
    with process_edge(as_json=as_json) as out:
        if not agreed:
            raise FlowmapsrError("Nothing was stopped or removed (--wipe --yes does not ask)")
        from infra.local_stack import stack

        place = _existing(folder)
        doing("stopping the servers")
        with place.lock():
            stack.take_down(place)
            if wipe:
                stack.wipe(place)
        out.say(stack_report.stopped(place.root, _words(folder), wiped=wipe))


def _agrees(folder: Path | None) -> bool:
    """Asks at a terminal; elsewhere nobody agrees."""
    question = f"Remove everything that the servers keep in {_place(folder).root}?"
    return sys.stdin.isatty() and typer.confirm(question, err=True)


def _place(folder: Path | None) -> StackFolder:
    from infra.local_stack.folder import StackFolder, default_folder

    return StackFolder(_absolute(folder or default_folder()))


def _absolute(path: Path) -> Path:
    return Path(os.path.expanduser(path)).absolute()


def _existing(folder: Path | None) -> StackFolder:
    place = _place(folder)
    if not place.ports_file.is_file():
        again = " ".join(["flowmapsr stack up", *_words(folder)])
        raise FlowmapsrError(f"there is no stack in {place.root}; start one: {again}")
    return place


def _words(folder: Path | None) -> list[str]:
    """What names the folder in another command."""
    return [] if folder is None else ["--folder", str(folder)]
