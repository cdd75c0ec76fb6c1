"""Compares the listed photos with what a dataset holds: which are new, changed or missing?

Reads a listing and the dataset's own records; opens no image and writes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.layout import (
    MANIFEST,
    PLAN,
    REJECTED,
    SHARDS,
    SOURCES,
    TASKS,
    kept_path,
    record_path,
)
from datagen.dataset.manifest import Manifest, kept_digests, load_manifest
from datagen.dataset.tasks import Plan, ShardTask, TaskRecord
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.lock import is_lock
from datagen.pairs.listing import list_photos
from datagen.photos.source_file import Rejection, SourceFile, is_readable
from datagen.photos.sources import Listing
from datagen.records import diff, read_record
from datagen.settings import DatasetRecipe

_REMEDY = "remove it and run the same command again"
_PLAN_REMEDY = "build into another output, or finish this build with the version that began it"


@dataclass(frozen=True)
class Survey:
    """A dataset compared with its sources."""

    recipe: DatasetRecipe
    manifest: Manifest | None
    base: str | None
    """SHA-256 of the manifest's file."""
    open_plan: Plan | None
    """Of a build that was started and is not finished."""
    finished: dict[int, TaskRecord]
    """Records of its finished tasks, by index."""
    cleanup_pending: bool
    """Whether a build died after its commit, before it had cleaned up."""
    known: KnownPhotos
    listing: Listing
    new: tuple[SourceFile, ...]
    """Files whose content the dataset does not know yet, those of an open build included."""
    changed: frozenset[str]
    """URIs of photos whose content was different when samples were made of them."""
    missing: frozenset[str]
    """URIs of photos that samples were made of and that are no longer listed."""

    @property
    def complete(self) -> Manifest | None:
        """The manifest, if the dataset is finished and there is nothing new."""
        to_do = self.open_plan or self.cleanup_pending or self.new or self.new_rejections
        return None if to_do else self.manifest

    @property
    def manifest_is_lost(self) -> bool:
        """Whether the dataset was finished once, and its manifest is gone."""
        return self.manifest is None and self.open_plan is None and bool(self.known.lines)

    @property
    def new_rejections(self) -> list[Rejection]:
        """What the listing rejects and the dataset has not recorded yet."""
        known = self.known.rejected()
        return [item for item in self.listing.rejected if known.get(item.uri) != item.reason]


def survey(recipe: DatasetRecipe, listing: Listing | None = None) -> Survey:
    """Lists the sources, unless a listing is given, and reads the dataset's records.

    Raises:
        FlowmapsrError: the output is not a dataset, or one of another recipe (naming the fields),
            or a source is missing or holds no photo.
    """
    manifest, base, plan = _records(recipe)
    # A build writes the manifest and cleans up, its plan last; one that died in between left both.
    open_plan = plan if plan is not None and plan.base == base else None
    tasks_left = manifest is not None and storage.exists(storage.join(recipe.output, TASKS))
    known = KnownPhotos.read(recipe.output)
    if listing is None:
        listing = list_photos(recipe)
    current = {line.uri: (line.bytes, line.stamp) for line in known.lines if line.stamp}
    new = [file for file in listing.files if current.get(file.uri) != (file.bytes, file.stamp)]
    closed = known.unreadable()
    halves = {file.uri: (file, listing.lq.get(file.uri, file)) for file in new}
    closed -= {uri for uri in closed & halves.keys() if all(map(is_readable, halves[uri]))}
    new = [file for file in new if file.uri not in closed]
    listed = {file.uri for file in listing.files}
    made = [line for line in known.lines if line.sha256 is not None and line.stamp]
    return Survey(
        recipe=recipe,
        manifest=manifest,
        base=base,
        open_plan=open_plan,
        finished=finished_tasks(open_plan) if open_plan else {},
        cleanup_pending=open_plan is None and (plan is not None or tasks_left),
        known=known,
        listing=listing,
        new=tuple(new),
        changed=frozenset({line.uri for line in made} & {file.uri for file in new}),
        missing=frozenset(line.uri for line in made if line.uri not in listed),
    )


def finished_tasks(plan: Plan) -> dict[int, TaskRecord]:
    """Records of the tasks whose shards all exist, by index."""
    if not storage.exists(plan.output):
        return {}
    sizes = {entry.uri: entry.bytes for entry in storage.scan(plan.output)}
    records: dict[int, TaskRecord] = {}
    for task in plan.tasks:
        uri = storage.join(plan.output, task.path)
        if uri in sizes:
            record = read_record(uri, TaskRecord, remedy=_REMEDY)
            if record is not None and _is_complete(plan.output, task, record, sizes):
                records[task.index] = record
    return records


def _is_complete(output: str, task: ShardTask, record: TaskRecord, sizes: dict[str, int]) -> bool:
    planned = {photo.file.uri for photo in task.photos}
    return {photo.uri for photo in record.photos} == planned and all(
        sizes.get(storage.join(output, shard.path)) == shard.bytes
        and storage.join(output, record_path(shard.path)) in sizes
        for shard in record.shards
    )


def _records(recipe: DatasetRecipe) -> tuple[Manifest | None, str | None, Plan | None]:
    """The output's manifest, the SHA-256 of its file, and the plan."""
    output = recipe.output
    if not storage.exists(output):
        return None, None, None
    if storage.size(output) is not None:
        raise FlowmapsrError(f"{output}: the output is a file; give a folder")
    manifest = base = None
    if storage.exists(storage.join(output, MANIFEST)):
        manifest = load_manifest(output)
        _refuse_other_recipe(output, manifest.dataset_recipe(output).content(), recipe)
        base = _sha256_of(storage.join(output, MANIFEST))
    plan = read_record(storage.join(output, PLAN), Plan, remedy=_PLAN_REMEDY)
    if plan is not None:
        _refuse_other_recipe(output, plan.recipe.content(), recipe)
    if manifest is None and plan is not None and plan.base is not None:
        uris = (storage.join(output, kept_path(digest)) for digest in kept_digests(output))
        copies = (uri for uri in uris if _sha256_of(uri) == plan.base)
        copy = next(copies, "")
        raise FlowmapsrError(
            f"{storage.join(output, MANIFEST)}: lost while a build that adds to it is open; "
            f"restore the file{copy and f', of which {copy} is a copy'}"
        )
    if manifest is None and plan is None and not _holds_shards(output):
        for entry in storage.scan(output):
            ours = entry.uri == storage.join(output, REJECTED)  # of a build that was refused
            if not (ours or is_lock(entry.uri) or storage.is_temporary(entry.uri)):
                raise FlowmapsrError(
                    f"{output}: the output is not empty and not a dataset (it holds {entry.uri}); "
                    "give a new folder"
                )
    return manifest, base, plan


def _sha256_of(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def _holds_shards(output: str) -> bool:
    """Whether a dataset without a manifest and an open build was finished once."""
    return all(storage.exists(storage.join(output, name)) for name in (SOURCES, SHARDS))


def _refuse_other_recipe(output: str, found: dict[str, Any], recipe: DatasetRecipe) -> None:
    if changes := diff(found, recipe.content()):
        raise FlowmapsrError(
            f"{output}: holds a dataset of another recipe ({'; '.join(map(str, changes))}); "
            "give another output, or put the recipe back"
        )
