"""Which photos become which files; what would lose something is refused before any work begins."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.source_file import SourceFile
from datagen.photos.sources import ARCHIVE, LIST, list_sources
from training.inference.pictures.encode import FORMATS

RECORDS = ".flowmapsr"
"""Folder in an output folder with a record of each result."""


@dataclass(frozen=True)
class Job:
    """One photo and the file it becomes."""

    source: SourceFile
    target: str
    """A path, or an address in S3."""
    record: str | None = None
    """Where is kept what the target was made of; None for a single file."""
    target_exists: bool = False


@dataclass(frozen=True)
class Plan:
    jobs: list[Job]
    unreadable: list[tuple[str, str]]
    """Photos that were found and cannot be opened, and why."""


def plan_jobs(source: str, output: str, *, overwrite: bool, skip_existing: bool) -> Plan:
    """What to read and write. Results with a record count as made here: they are made again where
    photo or settings have changed.

    Raises:
        FlowmapsrError: nothing to read, no place to write to, a format that cannot be written, an
            output inside the input, two photos of one name, or an output that was not made here.
    """
    if not storage.is_remote(source):
        source = os.path.normpath(source)
    _check_writable(output)
    if _is_single(source):
        plan = Plan([_single_job(source, output)], [])
    else:
        plan = _folder_plan(source, output)
    _check_originals_safe(plan.jobs)
    if skip_existing:
        return Plan([job for job in plan.jobs if not job.target_exists], plan.unreadable)
    foreign = [
        job.target
        for job in plan.jobs
        if job.target_exists and (job.record is None or not storage.exists(job.record))
    ]
    if foreign and not overwrite:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise FlowmapsrError(
            f"{foreign[0]}{more} exists already; use --overwrite to replace, --skip-existing to "
            f"make only what is missing, or another --output"
        )
    return plan


def _check_writable(output: str) -> None:
    if storage.is_remote(output):
        return
    place = os.path.abspath(output)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise FlowmapsrError(
            f"{output}: nothing can be written in {place}; give this user permission there, or "
            "choose another --output"
        )


def _is_single(source: str) -> bool:
    if source.lower().endswith((ARCHIVE, LIST)):
        return False
    if storage.entry(source) is not None:
        return True
    if not storage.is_remote(source) and not os.path.isdir(source):
        raise FlowmapsrError(f"{source} does not exist; give a photo or a folder of photos")
    return False


def _single_job(source: str, output: str) -> Job:
    entry = storage.entry(source)
    assert entry is not None
    suffix = PurePosixPath(output).suffix.lower()
    folder = not storage.is_remote(output) and os.path.isdir(output)
    if folder or not suffix or output.endswith("/"):
        target = storage.join(output, _written_name(PurePosixPath(source).name))
    elif suffix in FORMATS:
        target = output
    else:
        raise FlowmapsrError(
            f"{output}: cannot write {suffix} files; choose from {', '.join(FORMATS)}"
        )
    exists = storage.exists(target)
    return Job(SourceFile(source, entry.bytes, entry.stamp), target, target_exists=exists)


def _folder_plan(source: str, output: str) -> Plan:
    if not storage.is_remote(output) and os.path.isfile(output):
        raise FlowmapsrError(f"{output} is a file, but {source} is a folder; give a folder to -o")
    if (_real(output) + "/").startswith(_real(source) + "/"):
        raise FlowmapsrError(
            f"--output {output} is inside the photos' folder {source}, where its pictures would be "
            "read as photos the next time: give a folder beside it"
        )
    listing = list_sources((source,))
    there = _files_below(output)
    jobs = []
    for photo in listing.files:
        name = _written_name(_relative(photo, source))
        target, record = storage.join(output, name), storage.join(output, RECORDS, f"{name}.json")
        jobs.append(Job(photo, target, record, target in there))
    return Plan(jobs, [(item.uri, item.reason) for item in listing.rejected])


def _relative(photo: SourceFile, root: str) -> str:
    """The name of a photo below the folder, archive or list that was given."""
    uri = photo.uri
    if photo.container is not None:
        uri = f"{photo.container}/{uri[len(photo.container) + 1 :]}"
    root = root.rstrip("/") + "/"
    return uri.removeprefix(root) if uri.startswith(root) else PurePosixPath(uri).name


def _written_name(name: str) -> str:
    path = PurePosixPath(name)
    return str(path if path.suffix.lower() in FORMATS else path.with_suffix(".png"))


def _files_below(folder: str) -> set[str]:
    if not storage.is_remote(folder) and not os.path.isdir(folder):
        return set()
    try:
        return {found.uri for found in storage.scan(folder)}
    except storage.NotFoundError:
        return set()


def _real(location: str) -> str:
    return location.rstrip("/") if storage.is_remote(location) else os.path.realpath(location)


def _check_originals_safe(jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    originals = {_real(job.source.container or job.source.uri) for job in jobs}
    taken: dict[str, str] = {}
    for job in jobs:
        target = _real(job.target)
        if target in originals:
            raise FlowmapsrError(f"{job.target} is the original itself; give another --output")
        if target in taken:
            raise FlowmapsrError(
                f"{job.source.uri} and {taken[target]} would both become {job.target}; rename one"
            )
        taken[target] = job.source.uri
