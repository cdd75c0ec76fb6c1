"""The stack's folder: what is made once, and what is wrong with one from elsewhere."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from infra.local_stack import servers, stack
from infra.local_stack.folder import FIRST_PORT, StackFolder, last_lines
from infra.local_stack.postgres import make_data_folder
from infra.local_stack.stack import Stack


@pytest.fixture
def folder(tmp_path: Path) -> StackFolder:
    made = StackFolder(tmp_path / "stack")
    made.make()
    return made


def test_secrets_and_ports_are_made_once(folder: StackFolder) -> None:
    secrets, ports = folder.secrets(), folder.ports()
    again = StackFolder(folder.root)
    assert (again.secrets(), again.ports(), again.free_ports()) == (secrets, ports, ports)
    assert len(set(secrets.model_dump().values())) == len(type(secrets).model_fields)
    assert min(ports.model_dump().values()) >= FIRST_PORT
    assert folder.secrets_file.stat().st_mode & 0o777 == 0o600


def test_only_a_port_that_another_program_has_taken_changes(folder: StackFolder) -> None:
    before = folder.ports()
    with socket.socket() as other:
        other.bind(("127.0.0.1", before.mlflow))
        other.listen()
        after = folder.free_ports()
    changed = {name for name, port in before if getattr(after, name) != port}
    assert changed == {"mlflow"}
    assert after.mlflow not in before.model_dump().values()


def test_lost_secrets_of_data_that_is_there_are_never_made_anew(folder: StackFolder) -> None:
    folder.postgres.mkdir()
    (folder.postgres / "PG_VERSION").write_text("18\n")
    with pytest.raises(FlowmapsrError, match=r"secrets\.json is gone, and with it the passwords"):
        folder.secrets()
    assert not folder.secrets_file.exists()


@pytest.mark.stack
def test_data_of_another_postgres_is_refused(folder: StackFolder) -> None:
    secrets = folder.secrets()
    folder.postgres.mkdir()
    (folder.postgres / "PG_VERSION").write_text("12\n")
    with pytest.raises(FlowmapsrError, match=r"is of PostgreSQL 12, and 18 is installed"):
        make_data_folder(folder, secrets)


@pytest.mark.stack
def test_a_half_made_folder_of_postgres_is_refused_and_kept(folder: StackFolder) -> None:
    folder.postgres.mkdir()
    (folder.postgres / "base").touch()
    with pytest.raises(FlowmapsrError, match="holds files but no PG_VERSION.* or remove it"):
        make_data_folder(folder, folder.secrets())
    assert (folder.postgres / "base").exists()


@pytest.mark.stack
def test_a_folder_that_cannot_be_made_or_has_no_room_is_named(
    tmp_path: Path, folder: StackFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlowmapsrError, match=r"file/stack cannot be made \(Not a directory\)"):
        StackFolder(tmp_path / "file/stack").make()
    monkeypatch.setattr(stack, "FREE_BYTES", 1 << 62)
    with pytest.raises(FlowmapsrError, match="MiB free, and the servers need"):
        Stack(folder).up(on_server=lambda _: None)


def test_two_commands_at_once_are_refused(folder: StackFolder) -> None:
    with (
        folder.lock(),
        pytest.raises(FlowmapsrError, match="another command is at work"),
        StackFolder(folder.root).lock(),
    ):
        pass


def test_missing_packages_are_named_with_what_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(servers.PACKAGES, "not_installed", "not-installed")
    with pytest.raises(FlowmapsrError, match=r"not-installed.*: pip install 'flowmapsr\[ser"):
        servers.require_packages()


def test_the_log_of_an_unknown_server_names_those_there_are(folder: StackFolder) -> None:
    folder.log("mlflow").write_text("one\ntwo\n")
    assert last_lines(folder, "mlflow", 1) == ["two"]
    with pytest.raises(FlowmapsrError, match="there is no log of mlfow; there are of: mlflow"):
        last_lines(folder, "mlfow", 1)


@pytest.mark.stack
@pytest.mark.skipif(os.geteuid() != 0, reason="as root Postgres runs as another user")
def test_a_folder_that_the_user_of_postgres_cannot_reach_is_named(
    tmp_path: Path, folder: StackFolder
) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(FlowmapsrError, match="nobody, whom Postgres runs as"):
        make_data_folder(folder, folder.secrets())
