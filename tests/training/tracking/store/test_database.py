"""MLflow's database is made by one process; one that cannot be used is named in a line."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from datagen.errors import FlowmapsrError
from tests.support.small_disk import DiskMaker
from training.tracking.store import database
from training.tracking.store.client import new_client
from training.tracking.store.database import check_database, prepare_database

FIRST_START = """
import sys
from training.tracking.store.client import new_client
client = new_client(sys.argv[1])
print(client.create_experiment(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "mlflow.db"
    new_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy of a database that was made."""
    return Path(shutil.copy(made, tmp_path))


def change(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as file:
        for statement in statements:
            file.execute(statement)


def test_two_first_starts_at_once_make_one_database(tmp_path: Path) -> None:
    """Beside the half of one that MLflow left when it was killed, which both find."""
    path = tmp_path / "mlflow.db"
    change(path, "CREATE TABLE experiments (name)", "CREATE TABLE runs (name)")
    os.utime(path, (0, 0))
    words = [sys.executable, "-c", FIRST_START, f"sqlite:///{path}"]
    both = [
        subprocess.Popen([*words, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "".join(err for _, err in said).count("a new one is made") == 1
    (aside,) = tmp_path.glob("mlflow.db.unfinished-*")
    with sqlite3.connect(aside) as kept:
        assert kept.execute("SELECT name FROM sqlite_master").fetchall() == [
            ("experiments",),
            ("runs",),
        ]
    names = {one.name for one in MlflowClient(f"sqlite:///{path}").search_experiments()}
    assert names == {"Default", "one", "two"}
    assert not list(tmp_path.glob("*.new-*"))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0584bdc529eb", "older MLflow .* `mlflow db upgrade sqlite:///{path}`"),
        ("ffffffffffff", "newer MLflow .* install that one"),
    ],
)
def test_a_database_of_another_version_is_kept_and_named(
    path: Path, version: str, message: str
) -> None:
    change(path, f"UPDATE alembic_version SET version_num = '{version}'")
    before = path.read_bytes()
    with pytest.raises(FlowmapsrError, match=message.format(path=path)) as refused:
        prepare_database(path)
    assert "\n" not in str(refused.value) and path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "prefect.db"
    change(path, "CREATE TABLE flow_run (name)", "CREATE TABLE alembic_version (version_num)")
    with pytest.raises(FlowmapsrError, match="of another program .*flow_run"):
        prepare_database(path)
    path.write_text("no database at all")
    with pytest.raises(FlowmapsrError, match=r"cannot be read \(file is not a database\)"):
        prepare_database(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_database_that_another_program_makes_is_waited_for(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"
    change(path, "CREATE TABLE experiments (name)")

    def step(_: float) -> None:
        shutil.copy(made, path)

    monkeypatch.setattr("training.tracking.store.database.time.sleep", step)
    prepare_database(path)
    assert not list(tmp_path.glob("*.unfinished-*"))


def test_a_locked_database_is_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCKED_SECONDS", 0.1)
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(FlowmapsrError, match=r"cannot be read \(database is locked\)"):
            check_database(path)


def test_a_full_disk_leaves_nothing_of_a_new_database(small_disk: DiskMaker) -> None:
    path = small_disk(400_000) / "mlflow.db"
    with pytest.raises(OSError, match="cannot be made: .*full") as failed:
        prepare_database(path)
    assert "\n" not in str(failed.value)
    assert {file.name for file in path.parent.iterdir()} <= {"mlflow.db.lock"}
