"""Makes MLflow's SQLite database, once, and refuses one that this MLflow cannot use.

Two processes that let MLflow make it at the same time leave tables that fail for ever; and of a
database of another version MLflow says fifteen lines, or changes an older one without a word.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from contextlib import closing
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from datagen.errors import FlowmapsrError, first_line
from training.tracking.store.address import SQLITE

log = logging.getLogger(__name__)

FIRST_TABLES = {"experiments", "runs", "tags", "metrics", "params", "alembic_version"}
"""MLflow makes these, then changes them and adds the others in dozens of steps."""
VERSION = "SELECT version_num FROM alembic_version"
LOCKED_SECONDS, IDLE_SECONDS, LONG_AGO_SECONDS = 5.0, 5.0, 600.0


@cache
def prepare_database(path: Path) -> None:
    """Makes the database of a path if there is none, else checks it; once in a process.

    One that MLflow has not finished making has nothing in it, and is put aside.

    Raises:
        OSError: it cannot be made.
        FlowmapsrError: it is not one of this version of MLflow.
    """
    if not _is_made(path):
        if not os.access(path.parent, os.W_OK):
            raise OSError(f"{path.parent} is missing or read only")
        with FileLock(f"{path}.lock"):
            while path.is_file() and not _is_made(path) and _is_changing(path):
                log.debug("a program that does not ask for the lock makes %s", path)
            if not _is_made(path):
                _put_aside(path)
                _make(path)
    check_database(path)


def check_database(path: Path) -> None:
    """Checks that a database is of this version of MLflow; one that is not made yet passes.

    Raises:
        FlowmapsrError: it cannot be read, or is of another version or program.
    """
    if not _is_made(path):
        return
    found = _select(path, VERSION)
    known, latest = _schema_versions()
    if found == {latest}:
        return
    if found <= known:
        raise FlowmapsrError(
            f"{path} is of an older MLflow than {version('mlflow')}: copy the file, then run "
            f"`mlflow db upgrade {SQLITE}{path}`, or set MLFLOW_TRACKING_URI to another"
        )
    raise FlowmapsrError(
        f"{path} is of a newer MLflow than {version('mlflow')}: install that one (`pip install "
        "--upgrade mlflow`), or set MLFLOW_TRACKING_URI to another"
    )


def _is_made(path: Path) -> bool:
    """Whether MLflow has finished making a database, after which it adds the first experiment."""
    if not path.is_file() or not path.stat().st_size:
        return False
    tables = _select(path, "SELECT name FROM sqlite_master WHERE type = 'table'")
    if "experiments" in tables:
        is_used = bool(_select(path, "SELECT 1 FROM experiments LIMIT 1"))
        return is_used or _select(path, VERSION) == {_schema_versions()[1]}
    if tables <= FIRST_TABLES:
        return False
    raise FlowmapsrError(
        f"{path} is a database of another program ({', '.join(sorted(tables)[:3])}, ...): set "
        "MLFLOW_TRACKING_URI to another file"
    )


def _select(path: Path, query: str) -> set[str]:
    """The first column of what a query finds; nothing where its table is missing."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", LOCKED_SECONDS, uri=True)) as file:
            return {str(row[0]) for row in file.execute(query)}
    except sqlite3.DatabaseError as error:
        if "no such table" in str(error):
            return set()
        raise FlowmapsrError(
            f"MLflow's database {path} cannot be read ({first_line(error)}): end what holds it, "
            "or set MLFLOW_TRACKING_URI to another file"
        ) from error


def _is_changing(path: Path) -> bool:
    before = path.stat()
    if time.time() - before.st_mtime > LONG_AGO_SECONDS:
        return False
    time.sleep(IDLE_SECONDS)
    after = path.stat()
    return (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size)


def _put_aside(path: Path) -> None:
    """Renames what is left of a database whose making ended too early."""
    if not path.is_file() or not path.stat().st_size:
        return
    aside = path.with_name(f"{path.name}.unfinished-{time.time_ns()}")
    for end in ("", "-journal", "-wal", "-shm"):
        if Path(f"{path}{end}").exists():
            os.replace(f"{path}{end}", f"{aside}{end}")
    log.warning(
        "%s was never finished, as when two programs make it at once or one is killed: it holds no "
        "run, is now called %s, and a new one is made",
        path,
        aside.name,
    )


def _make(path: Path) -> None:
    """Has MLflow make a database under another name, so that it is never seen unfinished."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f"{path.name}.new-{os.getpid()}")
    try:
        store = SqlAlchemyStore(f"{SQLITE}{new}", (path.parent / "artifacts").as_uri())
        store.engine.dispose()
        os.replace(new, path)
    # SQLAlchemy's errors are of a dozen lines.
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise OSError(f"MLflow's database {path} cannot be made: {reason}") from error
    finally:
        for file in path.parent.glob(f"{new.name}*"):
            file.unlink()


def _schema_versions() -> tuple[set[str], str]:
    """The schemas that the installed MLflow knows, and the latest of them. Its files are read: to
    import them takes seconds."""
    spec = find_spec("mlflow")
    assert spec is not None and spec.origin is not None
    known, before = set(), set()
    for file in Path(spec.origin).parent.glob("store/db_migrations/versions/*.py"):
        text = file.read_text(encoding="utf-8")
        known |= set(re.findall(r'^revision = "(\w+)"', text, re.MULTILINE))
        before |= set(re.findall(r'^down_revision = "(\w+)"', text, re.MULTILINE))
    (latest,) = known - before
    return known, latest
