"""The stack's folder: data, logs, configuration, and the secrets and ports made at the first start.

secrets.json  ray-token    made once, for the owner's eyes alone
ports.json                 kept, so that addresses stay the same
supervisord.conf           written at each start, with secrets
postgres/ s3/ prefect/     what the servers keep
logs/NAME.log
"""

from __future__ import annotations

import os
import secrets
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from datagen.errors import FlowmapsrError
from datagen.records import FrozenModel, read_record

FIRST_PORT = 20400
"""Above those that Ray gives to its workers, below those of outgoing connections."""
OWNER_ONLY = 0o600


class Secrets(FrozenModel):
    """One for each server; the key of the S3 server is no secret but is kept beside its own."""

    supervisor: str
    postgres: str
    s3_key: str
    s3: str
    mlflow: str
    mlflow_sessions: str
    prefect: str
    ray: str


class Ports(FrozenModel):
    supervisor: int
    postgres: int
    s3: int
    s3_grpc: int
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int
    mlflow: int
    prefect: int
    ray: int
    ray_client: int
    ray_agent: int
    ray_agent_grpc: int
    ray_metrics: int


def default_folder() -> Path:
    """Where the user's data belongs; as root a place that the user of Postgres can reach."""
    if os.geteuid() == 0:
        return Path("/var/lib/flowmapsr/stack")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(data) / "flowmapsr/stack"


class StackFolder:
    """Paths and records in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secrets_file = root / "secrets.json"
        self.ray_token = root / "ray-token"
        self.s3_config = root / "s3.json"
        self.mlflow_auth = root / "mlflow-auth.ini"
        self.ports_file = root / "ports.json"
        self.configuration = root / "supervisord.conf"
        self.logs = root / "logs"
        self.postgres = root / "postgres"
        self.s3 = root / "s3"
        self.prefect = root / "prefect"

    def log(self, name: str) -> Path:
        """Of a server."""
        return self.logs / f"{name}.log"

    def make(self) -> None:
        """Makes the folder; others may pass through it (Postgres has a user of its own where root
        starts it), but list nothing.

        Raises:
            FlowmapsrError: it cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o711)
            for path in (self.logs, self.s3, self.prefect):
                path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise FlowmapsrError(
                f"{self.root} cannot be made ({error.strerror}); choose another with --folder"
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """For one command at a time.

        Raises:
            FlowmapsrError: another one is at work.
        """
        try:
            with FileLock(self.root / "command.lock", timeout=0):
                yield
        except Timeout as error:
            raise FlowmapsrError(
                f"another command is at work on the stack in {self.root}; wait for it to end"
            ) from error

    def secrets(self) -> Secrets:
        """Of this stack, made at the first call."""
        found = read_record(
            self.secrets_file,
            Secrets,
            remedy="put the right one back, or remove the stack: flowmapsr stack down --wipe",
        )
        if found is None:
            if (self.postgres / "PG_VERSION").is_file():
                raise FlowmapsrError(
                    f"{self.secrets_file} is gone, and with it the passwords of the data beside "
                    "it; put it back, or remove the stack: flowmapsr stack down --wipe"
                )
            made = {name: secrets.token_hex(24) for name in Secrets.model_fields}
            found = Secrets.model_validate(made)
            write_private(self.secrets_file, found.model_dump_json(indent=2))
        return found

    def ports(self) -> Ports:
        """Those of the last start, or new ones."""
        kept = read_record(self.ports_file, Ports, remedy="remove it: new ports are chosen")
        return kept or self.free_ports()

    def free_ports(self) -> Ports:
        """Those of the last start; where another program has taken one since, a new one."""
        kept = read_record(self.ports_file, Ports, remedy="remove it: new ports are chosen")
        old = kept.model_dump() if kept else {}
        taken = set(old.values())
        new = (port for port in range(FIRST_PORT, 1 << 15) if port not in taken and is_free(port))
        chosen = {
            name: old[name] if name in old and is_free(old[name]) else next(new)
            for name in Ports.model_fields
        }
        found = Ports.model_validate(chosen)
        write_private(self.ports_file, found.model_dump_json(indent=2))
        return found


def is_free(port: int) -> bool:
    """Whether a server could listen there; connections that are closing do not count."""
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def write_private(path: Path, text: str) -> None:
    """Replaces a file by one that only its owner can read, at every moment."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "w") as file:
        file.write(text)
    part.replace(path)


def last_lines(folder: StackFolder, name: str, count: int) -> list[str]:
    """The end of a server's log.

    Raises:
        FlowmapsrError: there is no such log.
    """
    path = folder.log(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.logs.glob("*.log")))
        raise FlowmapsrError(f"there is no log of {name}; there are of: {known or 'none'}")
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=count)]
