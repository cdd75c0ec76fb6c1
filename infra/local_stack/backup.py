"""Copies what the stack keeps into a folder, while it runs, and puts it back into an empty stack.

mlflow.dump prefect.dump    the databases, each as of one moment
objects/000001 ...          the objects of S3; copied after the databases, which name them
objects.jsonl               bucket, key and checksum of each
backup.json                 written last: without it a backup is not whole

Passwords are not copied: those of the new stack hold. MLflow's other users keep theirs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from werkzeug.security import generate_password_hash

from datagen.errors import FlowmapsrError
from datagen.records import FrozenModel, read_record
from infra.local_stack.folder import Ports, Secrets
from infra.local_stack.postgres import DATABASES, client_programs, output_of
from infra.local_stack.server import USER
from infra.local_stack.servers import BUCKETS, s3_client


class StoredObject(FrozenModel):
    """An object of S3 as a file of a backup."""

    bucket: str
    key: str
    file: str
    sha256: str


class Backup(FrozenModel):
    """What a backup holds."""

    made: float
    """Seconds since the epoch."""
    objects: int
    bytes: int
    """Of the objects."""


class Copier:
    """Between the servers of a stack, which must run, and a folder."""

    def __init__(self, secrets: Secrets, ports: Ports, client: Mapping[str, str]) -> None:
        self._program = client_programs(secrets, ports)
        self._mlflow_password = secrets.mlflow
        self._s3 = s3_client(client)

    def save(self, place: Path) -> Backup:
        """Copies everything into an empty or new folder, for the owner's eyes alone.

        Raises:
            FlowmapsrError: the folder holds something, or a copy fails.
        """
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise FlowmapsrError(f"{place} is not empty; name a new folder for the backup")
        (place / "objects").mkdir(parents=True)
        place.chmod(0o700)
        for name in DATABASES:
            output_of(self._program("pg_dump", "-Fc", "-f", str(place / f"{name}.dump"), name))
        count = size = 0
        with (place / "objects.jsonl").open("w") as index:
            for bucket, key in self._keys():
                count += 1
                file = place / "objects" / f"{count:06d}"
                self._s3.download_file(bucket, key, str(file))
                one = StoredObject(bucket=bucket, key=key, file=file.name, sha256=_sha256(file))
                index.write(one.model_dump_json() + "\n")
                size += file.stat().st_size
        made = Backup(made=time.time(), objects=count, bytes=size)
        (place / "backup.json").write_text(made.model_dump_json(indent=2))
        return made

    def require_empty(self) -> None:
        """Raises FlowmapsrError if the stack keeps anything: nothing is ever written over."""
        runs = self._query("mlflow", "SELECT count(*) FROM runs")
        flows = self._query("prefect", "SELECT count(*) FROM flow_run")
        if int(runs) or int(flows) or next(self._keys(), None) is not None:
            raise FlowmapsrError(
                f"the stack keeps data already ({runs.strip()} runs in MLflow, {flows.strip()} in "
                "Prefect, or objects in S3): restore into another one, with --folder, or remove "
                "it before: flowmapsr stack down --wipe"
            )

    def load(self, place: Path) -> None:
        """Puts a whole backup back; the servers that use the databases must have stopped."""
        for name in DATABASES:
            output_of(self._program("dropdb", "--force", name))
            output_of(self._program("createdb", name))
            dump = str(place / f"{name}.dump")
            output_of(self._program("pg_restore", "--exit-on-error", "-d", name, dump))
        # MLflow reads its own password at the start only where it makes its user.
        hashed = generate_password_hash(self._mlflow_password)
        change = f"UPDATE users SET password_hash = '{hashed}' WHERE username = '{USER}'"  # nosec B608
        self._query("mlflow", change)
        for one in _stored(place):
            if one.bucket not in BUCKETS:
                self._s3.create_bucket(Bucket=one.bucket)
            self._s3.upload_file(str(place / "objects" / one.file), one.bucket, one.key)

    def _query(self, database: str, text: str) -> str:
        return output_of(self._program("psql", "-d", database, "-qtA", text=text))

    def _keys(self) -> Iterator[tuple[str, str]]:
        for bucket in self._s3.list_buckets()["Buckets"]:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"])
            for page in pages:
                for item in page.get("Contents", []):
                    yield bucket["Name"], item["Key"]


def check_backup(place: Path) -> Backup:
    """What a backup holds, after a look at each of its files.

    Raises:
        FlowmapsrError: it is none, or not whole.
    """
    found = read_record(place / "backup.json", Backup, remedy="take another backup")
    if found is None:
        raise FlowmapsrError(f"{place} is no backup, or one that was cut off: no backup.json")
    for one in _stored(place):
        file = place / "objects" / one.file
        if not file.is_file() or _sha256(file) != one.sha256:
            raise FlowmapsrError(f"{file}: s3://{one.bucket}/{one.key} is missing or damaged there")
    return found


def _stored(place: Path) -> Iterator[StoredObject]:
    with (place / "objects.jsonl").open() as index:
        for line in index:
            yield StoredObject.model_validate_json(line)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
