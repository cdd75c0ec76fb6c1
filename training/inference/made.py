"""Records beside the results of a folder: of what content and by what settings each was made, so
that the same command goes on where it was stopped, and changed settings make all anew."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import IO

from datagen.errors import FlowmapsrError
from datagen.io import local, storage
from datagen.photos.source_file import read_photo
from datagen.records import FrozenModel, read_record, to_json
from training.inference.jobs import Job


class Made(FrozenModel):
    """What one result was made of, `<output>/.flowmapsr/<name>.json`."""

    source: str
    """SHA-256 of the photo's file."""
    source_stamp: str
    """As listed then; the file is not read again while it is the same."""
    settings: str
    """Digest of the model and all that a result depends on."""
    results: tuple[str, ...]
    """SHA-256 of the result; while it is being replaced also that of the one before."""
    whole: bool
    """False while the result is being written."""


def unfinished(jobs: Sequence[Job], settings: str, *, overwrite: bool) -> list[Job]:
    """The jobs whose result is missing, or of another photo or other settings.

    Raises:
        FlowmapsrError: a result that would be replaced was changed since it was made.
    """
    return [job for job in jobs if overwrite or not _is_done(job, settings)]


def publish(job: Job, photo: bytes, write: Callable[[IO[bytes]], None], settings: str) -> None:
    """Writes a result and its record. Killed at any moment, the next run knows the file as one
    that was made here.

    Args:
        write: writes the whole result to a seekable stream.
    """
    before = _record(job) if job.target_exists else None
    with storage.open_atomic(job.target) as stream:
        write(stream)
        if job.record is None:
            return
        stream.seek(0)
        made = Made(
            source=sha256(photo),
            source_stamp=_stamp(job),
            settings=settings,
            results=(hashlib.file_digest(stream, "sha256").hexdigest(),),  # type: ignore[arg-type]
            whole=True,
        )
        both = (*(before.results if before else ()), *made.results)
        begun = made.model_copy(update={"whole": False, "results": both})
        storage.write_bytes(job.record, to_json(begun))
    storage.write_bytes(job.record, to_json(made))


SIGN = "cluster"
"""Name, while it is being written, of a file by which workers know the output's folder."""


def remove_leftovers(jobs: Sequence[Job]) -> None:
    """Removes what killed runs of the same command left unfinished on a disk."""
    written: dict[str, set[str]] = {}
    for job in jobs:
        for uri in (job.target, job.record):
            if uri is not None and not storage.is_remote(uri):
                folder, name = os.path.split(uri)
                written.setdefault(folder or ".", {SIGN}).add(name)
    for folder, names in written.items():
        local.remove_abandoned(folder, names)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_done(job: Job, settings: str) -> bool:
    made = _record(job) if job.target_exists else None
    if made is None:
        return False
    if made.whole and made.settings == settings and _is_same_photo(job, made):
        return True
    if sha256(storage.read_bytes(job.target)) not in made.results:
        raise FlowmapsrError(
            f"{job.target} was changed since it was made; use --overwrite to replace it, "
            "--skip-existing to keep it, or another --output"
        )
    return False


def _is_same_photo(job: Job, made: Made) -> bool:
    return made.source_stamp == _stamp(job) or made.source == sha256(read_photo(job.source))


def _stamp(job: Job) -> str:
    return f"{job.source.bytes} {job.source.stamp}"


def _record(job: Job) -> Made | None:
    if job.record is None:
        return None
    return read_record(job.record, Made, remedy="remove it, and its picture if you do not need it")
