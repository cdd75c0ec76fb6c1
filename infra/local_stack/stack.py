"""Brings the servers of one folder up, says how they are, and takes them down."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil

from datagen.errors import FlowmapsrError
from datagen.records import FrozenModel, UnreadableRecord
from infra.local_stack.backup import Backup, Copier, check_backup
from infra.local_stack.folder import Ports, Secrets, StackFolder, last_lines
from infra.local_stack.postgres import make_data_folder
from infra.local_stack.server import Server
from infra.local_stack.servers import (
    all_servers,
    client_environment,
    require_packages,
    write_configuration,
)
from infra.local_stack.supervisor import Supervisor, configuration, end, left_over

log = logging.getLogger(__name__)

State = Literal["running", "starting", "not answering", "stopped"]
PATIENCE = 180.0
"""Seconds a server may take to come up: the first start makes its tables, on a busy machine."""
FREE_BYTES = 1 << 30
USERS_OF_DATABASES = ("prefect-worker", "prefect", "mlflow")


class ServerState(FrozenModel):
    """How a server is."""

    name: str
    state: State
    address: str
    pid: int | None = None
    seconds: float | None = None
    """Since it was started; null where it is not running."""
    log: str


class Stack:
    """The stack in one folder, which must be made already (`StackFolder.make`)."""

    def __init__(self, folder: StackFolder) -> None:
        require_packages()
        self.folder = folder
        self._secrets: Secrets = folder.secrets()
        self._ports: Ports = folder.ports()
        self._supervisor = Supervisor(folder, self._secrets, self._ports.supervisor)

    def environment(self) -> dict[str, str]:
        """The variables of a command that is to use the servers."""
        return client_environment(self.folder, self._secrets, self._ports)

    def up(self, *, on_server: Callable[[ServerState], None]) -> None:
        """Starts what is not running and waits until every server is well; tells of each.

        Raises:
            FlowmapsrError: a server does not come up. The others are left running.
        """
        _require_space(self.folder.root)
        if not self._supervisor.runs(self._configuration()):
            take_down(self.folder)  # what another version started, or a supervisor that died
            self._ports = self.folder.free_ports()
            self._supervisor = Supervisor(self.folder, self._secrets, self._ports.supervisor)
            make_data_folder(self.folder, self._secrets)
            write_configuration(self.folder, self._secrets, self._ports)
            self._supervisor.start(self._configuration())
        for server in self._started():
            on_server(self._state(server))

    def status(self) -> list[ServerState]:
        """How each server is now, asked with its password."""
        return [self._state(server) for server in self._servers()]

    def back_up(self, place: Path) -> Backup:
        """Copies what the servers keep into a new folder, while they work.

        Raises:
            FlowmapsrError: they do not run, or the folder holds something.
        """
        return self._copier().save(place)

    def restore(self, place: Path, *, on_server: Callable[[ServerState], None]) -> Backup:
        """Puts a backup into this stack, which must run and keep nothing, and starts its servers
        again.

        Raises:
            FlowmapsrError: the backup is not whole, or the stack keeps something.
        """
        found = check_backup(place)
        copier = self._copier()
        copier.require_empty()
        for name in USERS_OF_DATABASES:
            self._supervisor.stop_server(name)
        copier.load(place)
        self.up(on_server=on_server)
        return found

    def _copier(self) -> Copier:
        ill = [one.name for one in self.status() if one.state != "running"]
        if ill:
            raise FlowmapsrError(f"{', '.join(ill)}: not running; start it: flowmapsr stack up")
        return Copier(self._secrets, self._ports, self.environment())

    def stop_servers(self) -> None:
        """Those that the supervisor runs, and itself."""
        if self._supervisor.is_running():
            self._supervisor.shut_down(last="postgres")

    def _configuration(self) -> str:
        return configuration(self.folder, self._secrets, self._ports.supervisor, self._servers())

    def _servers(self) -> list[Server]:
        return all_servers(self.folder, self._secrets, self._ports)

    def _started(self) -> Iterator[Server]:
        """Starts each server once those it comes `after` are well, and gives it once it is too."""
        waiting, well = self._servers(), set[str]()
        begun: dict[str, float] = {}
        while waiting:
            for server in list(waiting):
                if server.name not in begun:
                    if well.issuperset(server.after):
                        self._supervisor.start_server(server.name)
                        begun[server.name] = time.monotonic()
                elif server.is_well():
                    if server.make_contents is not None:
                        server.make_contents()
                    waiting.remove(server)
                    well.add(server.name)
                    yield server
                else:
                    state = self._supervisor.processes()[server.name]["statename"]
                    if state == "FATAL" or time.monotonic() - begun[server.name] > PATIENCE:
                        raise FlowmapsrError(_failed(server, self.folder))
            time.sleep(0.2)

    def _state(self, server: Server) -> ServerState:
        process: Mapping[str, Any] = {"statename": "STOPPED", "pid": 0, "start": 0, "now": 0}
        if self._supervisor.is_running():
            process = self._supervisor.processes()[server.name]
        state: State = "stopped"
        if process["pid"]:
            early = process["statename"] == "STARTING"
            state = "running" if server.is_well() else "starting" if early else "not answering"
        elif process["statename"] == "BACKOFF":
            state = "starting"
        return ServerState(
            name=server.name,
            state=state,
            address=server.address,
            pid=process["pid"] or None,
            seconds=process["now"] - process["start"] if process["pid"] else None,
            log=str(self.folder.log(server.name)),
        )


def take_down(folder: StackFolder) -> None:
    """Ends every process of the stack, the last started first; what they keep stays."""
    try:
        Stack(folder).stop_servers()
    except UnreadableRecord as error:
        log.warning("%s", error)  # nobody can be asked to end; they are ended below
    end(left_over(folder))


def wipe(folder: StackFolder) -> None:
    """Removes what the servers keep. They must have ended."""
    shutil.rmtree(folder.root)


def _failed(server: Server, folder: StackFolder) -> str:
    path = folder.log(server.name)
    ending = last_lines(folder, server.name, 5) if path.is_file() else []
    return "\n  ".join([f"{server.name} does not come up; the end of {path}:", *ending])


def _require_space(folder: Path) -> None:
    free = psutil.disk_usage(str(folder)).free
    if free < FREE_BYTES:
        raise FlowmapsrError(
            f"{folder} has {free / 2**20:.0f} MiB free, and the servers need 1 GiB; make room or "
            "choose another folder with --folder"
        )
