"""The supervisor of the stack's processes (supervisord): configuration and remote calls.

It starts what dies again, rotates logs, and lives on when the command that started it has ended.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Error, ServerProxy  # to our own # nosec B411

import psutil

from datagen.errors import FlowmapsrError
from infra.local_stack.folder import Secrets, StackFolder, write_private
from infra.local_stack.server import HOST, USER, Server

OWNER = "FLOWMAPSR_STACK"
"""The variable by which a process is known as one of a stack, with the folder as its value."""
FOREIGN = ("AWS_", "MLFLOW_", "PREFECT_", "RAY_", "PG")
"""Variables of the user that must not reach the servers, which have their own values."""
STOP_SECONDS = 30
START_SECONDS = 20


def configuration(
    folder: StackFolder, secrets: Secrets, port: int, servers: Sequence[Server]
) -> str:
    """supervisord.conf, with the passwords that servers get by variables."""
    top = f"""\
[supervisord]
pidfile={folder.root}/supervisord.pid
logfile={folder.logs}/supervisor.log
childlogdir={folder.logs}
{"user=root" if os.geteuid() == 0 else ""}
[inet_http_server]
port={HOST}:{port}
username={USER}
password={secrets.supervisor}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
    return top.replace("%", "%%") + "".join(_program(folder, server) for server in servers)


def _program(folder: StackFolder, server: Server) -> str:
    environment = {OWNER: str(folder.root), **server.environment}
    values = ",".join(f'{name}="{value}"' for name, value in environment.items())
    lines = {
        "command": shlex.join(server.command),
        "environment": values,
        "directory": folder.root,
        "autostart": "false",
        "autorestart": "true",
        "startsecs": 10,  # what ends sooner has not come up
        "startretries": 6,
        "stopsignal": server.stop_signal,
        "stopwaitsecs": STOP_SECONDS,
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": folder.logs / f"{server.name}.log",
        "stdout_logfile_maxbytes": "10MB",
        "stdout_logfile_backups": 2,
        **({"user": server.system_user} if server.system_user else {}),
    }
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    return f"[program:{server.name}]\n" + text.replace("%", "%%")


class Supervisor:
    """The one supervisor of a folder, running or not."""

    def __init__(self, folder: StackFolder, secrets: Secrets, port: int) -> None:
        self._folder = folder
        address = f"http://{USER}:{secrets.supervisor}@{HOST}:{port}/RPC2"
        self._calls: Any = ServerProxy(address).supervisor

    def is_running(self) -> bool:
        try:
            return bool(self._calls.getState()["statename"] == "RUNNING")
        except (OSError, Error):
            return False

    def start(self, text: str) -> None:
        """Starts it with a configuration; its servers are started one by one."""
        write_private(self._folder.configuration, text)
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        started = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", self._folder.configuration],
            cwd=self._folder.root,
            env={**own, OWNER: str(self._folder.root)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        end = time.monotonic() + START_SECONDS
        while not self.is_running():
            if started.returncode or time.monotonic() > end:
                why = (started.stdout + started.stderr).strip().splitlines()[-1:]
                raise FlowmapsrError(
                    f"the supervisor did not start ({' '.join(why) or 'no reason was given'}); "
                    f"see {self._folder.logs}/supervisor.log"
                )
            time.sleep(0.1)

    def runs(self, text: str) -> bool:
        """Whether it runs with this configuration."""
        path = self._folder.configuration
        return path.is_file() and path.read_text() == text and self.is_running()

    def processes(self) -> Mapping[str, Mapping[str, Any]]:
        """What it says of each server, by name: `statename`, `pid`, `start`, `now`, ..."""
        return {found["name"]: found for found in self._calls.getAllProcessInfo()}

    def start_server(self, name: str) -> None:
        """Starts a server that is not running or has been given up."""
        if self.processes()[name]["statename"] in ("STOPPED", "EXITED", "FATAL"):
            self._calls.startProcess(name, False)

    def stop_server(self, name: str) -> None:
        """Stops a server and waits for its end."""
        if self.processes()[name]["statename"] in ("RUNNING", "STARTING", "BACKOFF"):
            self._calls.stopProcess(name, True)

    def shut_down(self, *, last: str) -> None:
        """Stops all servers at once, but the `last` only after the others; then itself."""
        for name, process in self.processes().items():
            if name != last and process["statename"] in ("RUNNING", "STARTING", "BACKOFF"):
                self._calls.stopProcess(name, False)
        end = time.monotonic() + STOP_SECONDS
        while time.monotonic() < end and any(
            process["pid"] for name, process in self.processes().items() if name != last
        ):
            time.sleep(0.2)
        self._calls.shutdown()
        while self.is_running() and time.monotonic() < end + STOP_SECONDS:
            time.sleep(0.2)


def left_over(folder: StackFolder) -> list[psutil.Process]:
    """Processes of a stack that nobody watches any more, Postgres' first."""
    found = []
    pid_file = folder.postgres / "postmaster.pid"
    if pid_file.is_file() and (pid := _postmaster(pid_file)) is not None:
        found.append(pid)
    for process in psutil.process_iter():
        try:
            if process.environ().get(OWNER) == str(folder.root):
                found.append(process)
        except psutil.Error:  # another user's, or gone
            continue
    own = {psutil.Process(), *psutil.Process().parents()}
    return [process for process in dict.fromkeys(found) if process not in own]


def _postmaster(pid_file: Path) -> psutil.Process | None:
    """Postgres' main process, whose variables cannot be read any more: it writes over them."""
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        return process if "postgres" in process.name() else None
    except (psutil.Error, ValueError, IndexError, OSError):
        return None


def end(processes: Sequence[psutil.Process]) -> None:
    """Asks processes to end, and kills those that do not."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)
