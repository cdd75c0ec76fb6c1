"""Turns a survey into the tasks of a build (`plan.json`): which photos go into which shards.

A begun build keeps its tasks as long as their photos are as planned, so that an interrupted build
ends with the bytes of an undisturbed one. Reads headers, never pixels. Knows no codec.
"""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from datagen.build.survey import Survey, survey
from datagen.dataset.known_photos import KnownPhoto, KnownPhotos, rejected_photo
from datagen.dataset.layout import PLAN, task_index
from datagen.dataset.tasks import PhotoVariants, Plan, ShardTask
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.decode import ImageRejected
from datagen.photos.scan import (
    DUPLICATE,
    ContentHasher,
    HeaderReader,
    MapChunks,
    chunked,
    map_locally,
    scan_and_dedupe,
)
from datagen.photos.source_file import SourceFile
from datagen.photos.sources import Listing
from datagen.records import to_compact_json
from datagen.samples.buckets import fitting_buckets
from datagen.settings import DatasetRecipe


def plan_dataset(
    recipe: DatasetRecipe, *, listing: Listing | None = None, map_chunks: MapChunks = map_locally
) -> Plan:
    """Makes the plan and writes `plan.json`; goes on with the one that is there.

    Only under the dataset's lock; a `listing` made before it will do. Raises FlowmapsrError as
    `survey`, and when no photo or too few of them can be used.
    """
    plan = make_plan(survey(recipe, listing), map_chunks=map_chunks)
    if plan.tasks or plan.rejected:
        storage.write_bytes(storage.join(recipe.output, PLAN), to_compact_json(plan))
    return plan


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of records that all stay: looking through them for garbage doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def make_plan(found: Survey, *, map_chunks: MapChunks = map_locally) -> Plan:
    """The plan for what a survey found; updates the known photos that moved."""
    recipe = found.recipe
    kept = _kept(found)
    fresh = [file for file in found.fresh if file not in kept.files]
    photos, rejected = _examined(found, fresh, kept, map_chunks)
    groups, too_small = _grouped(recipe, [*photos, *kept.loose])
    plan = Plan(
        recipe=recipe,
        recipe_digest=recipe.digest(),
        base=found.base,
        tasks=(*kept.tasks, *_tasks(groups, recipe.samples_per_shard, first=_next_index(found))),
        rejected=tuple(
            sorted(
                [*kept.rejected, *rejected, *too_small, *_listing_faults(found)],
                key=lambda photo: photo.uri,
            )
        ),
        known_photos=len(found.known.hashes()),
        known_rejected=sum(reason != DUPLICATE for reason in found.known.rejected().values()),
    )
    enforce_limit(plan, set())
    if not plan.tasks and found.manifest is None:
        reasons = Counter(photo.reason for photo in plan.rejected)
        raise FlowmapsrError(
            f"no photo of {', '.join(recipe.sources)} can be used: "
            + ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        )
    return plan


def enforce_limit(plan: Plan, rejected: set[str]) -> None:
    """Raises FlowmapsrError once a dataset leaves out too many photos.

    Args:
        rejected: URIs of photos that were left out while this plan's tasks were made.
    """
    bad = rejected | {photo.uri for photo in plan.rejected if photo.reason != DUPLICATE}
    if not bad:
        return
    new = len({photo.file.uri for task in plan.tasks for photo in task.photos} | bad)
    count, total = plan.known_rejected + len(bad), plan.known_photos + plan.known_rejected + new
    limit = plan.recipe.max_rejected_fraction
    if count > limit * total:
        raise FlowmapsrError(
            f"{count} of {total} photos cannot be used, more than max_rejected_fraction="
            f"{limit:g} allows, for example {', '.join(sorted(bad)[:3])}; mend or remove them, "
            "or raise max_rejected_fraction. Finished shards are kept"
        )


@dataclass(frozen=True)
class _Kept:
    """What goes on of a begun build."""

    tasks: tuple[ShardTask, ...] = ()
    files: frozenset[SourceFile] = frozenset()
    """In those tasks, rejected, or loose."""
    hashes: tuple[tuple[str, int], ...] = ()
    """SHA-256 and bytes of photos whose samples are made."""
    unmade: tuple[SourceFile, ...] = ()
    loose: tuple[PhotoVariants, ...] = ()
    """Photos as planned whose task was given up, since another one of it changed."""
    rejected: tuple[KnownPhoto, ...] = ()


def _kept(found: Survey) -> _Kept:
    if found.begun is None:
        return _Kept()
    listed = set(found.listing.files)
    finished = found.begun.finished
    tasks: list[ShardTask] = []
    loose: list[PhotoVariants] = []
    for task in found.begun.plan.tasks:
        if task.index in finished or all(photo.file in listed for photo in task.photos):
            tasks.append(task)
        else:
            loose += [photo for photo in task.photos if photo.file in listed]
    stamps = {(file.uri, file.stamp): file for file in found.listing.files}
    rejected = [p for p in found.begun.plan.rejected if (p.uri, p.stamp) in stamps]
    photos = [photo for record in finished.values() for photo in record.photos]
    planned = [photo.file for task in tasks for photo in task.photos]
    return _Kept(
        tasks=tuple(tasks),
        files=frozenset(
            [
                *planned,
                *(photo.file for photo in loose),
                *(stamps[photo.uri, photo.stamp] for photo in rejected),
            ]
        ),
        hashes=tuple((photo.sha256, photo.bytes) for photo in photos if photo.sha256),
        unmade=tuple(
            photo.file for task in tasks if task.index not in finished for photo in task.photos
        ),
        loose=tuple(loose),
        rejected=tuple(rejected),
    )


def _examined(
    found: Survey, fresh: Sequence[SourceFile], kept: _Kept, map_chunks: MapChunks
) -> tuple[list[PhotoVariants], list[KnownPhoto]]:
    """Headers of the fresh files; for content that only moved, the new URI is recorded."""
    recipe, known = found.recipe, found.known
    planned = _planned_hashes(
        fresh, [*kept.unmade, *(photo.file for photo in kept.loose)], map_chunks
    )
    result = scan_and_dedupe(
        fresh,
        HeaderReader(recipe.images, recipe.filters),
        known_hashes={**known.hashes(), **dict(kept.hashes), **planned},
        map_chunks=map_chunks,
    )
    rejected = [rejected_photo(file, reason) for file, reason in result.rejected]
    elsewhere = found.gone | found.changed
    lying = {line.sha256 for line in known.lines if line.stamp and line.uri not in elsewhere}
    moved: dict[str, SourceFile] = {}
    for digest, file in result.known.items():
        if digest in lying or digest not in known.hashes():
            rejected.append(rejected_photo(file, DUPLICATE))
        else:
            moved[digest] = file
    _update_known(found, moved)
    photos = [
        PhotoVariants(header.file, header.width, header.height, 0, recipe.samples_per_photo)
        # By content: neighbours in a folder are often alike, and where it lies must not matter.
        for header in sorted(result.photos, key=lambda header: (header.head, header.file.uri))
    ]
    return photos, rejected


def _planned_hashes(
    fresh: Sequence[SourceFile], planned: Iterable[SourceFile], map_chunks: MapChunks
) -> dict[str, int]:
    """SHA-256 of the photos still to be made that a fresh file may be a copy of."""
    sizes = {file.bytes for file in fresh}
    alike = sorted({file for file in planned if file.bytes in sizes})
    digests = (d for chunk in map_chunks(ContentHasher(), chunked(alike)) for d in chunk)
    return {digest: file.bytes for file, digest in zip(alike, digests, strict=True)}


def _update_known(found: Survey, moved: dict[str, SourceFile]) -> None:
    """Writes where known photos lie now, so that the next build need not look at them again."""
    listed = {file.uri for file in found.listing.files}
    known = found.known.superseded({file.uri for file in found.fresh}).moved(moved)
    faults = {item.uri for item in found.listing.rejected}
    known = KnownPhotos.of(
        line
        for line in known.lines
        if line.sha256 is not None or line.uri in listed or line.uri in faults
    )
    if found.manifest is not None and known != found.known:
        known.write(found.recipe.output)


def _listing_faults(found: Survey) -> Iterator[KnownPhoto]:
    known = found.known.rejected()
    for item in found.listing.rejected:
        if known.get(item.uri) != item.reason:
            yield KnownPhoto(item.uri, bytes=0, stamp="", sha256=None, reason=item.reason)


def _grouped(
    recipe: DatasetRecipe, photos: Iterable[PhotoVariants]
) -> tuple[dict[tuple[str, ...], list[PhotoVariants]], list[KnownPhoto]]:
    """Photos by the buckets that they may fall into, in their order; those that fit none."""
    groups: dict[tuple[str, ...], list[PhotoVariants]] = defaultdict(list)
    too_small: list[KnownPhoto] = []

    @cache  # photos come in few sizes
    def fitting(width: int, height: int) -> tuple[str, ...] | ImageRejected:
        try:
            found = fitting_buckets(recipe.buckets, width=width, height=height)
        except ImageRejected as error:
            return error
        return tuple(bucket.name for _, bucket in found)

    for photo in photos:
        names = fitting(photo.width, photo.height)
        if isinstance(names, ImageRejected):
            too_small.append(rejected_photo(photo.file, names.reason))
        else:
            groups[names].append(photo)
    return groups, too_small


def _tasks(
    groups: dict[tuple[str, ...], list[PhotoVariants]], samples: int, *, first: int
) -> Iterator[ShardTask]:
    index = first
    for name in sorted(groups):
        for photos in _portions(groups[name], samples):
            # Not checked again: for a million photos that takes a third of the whole plan.
            yield ShardTask.model_construct(index=index, photos=tuple(photos))
            index += 1


def _portions(photos: Sequence[PhotoVariants], samples: int) -> Iterator[list[PhotoVariants]]:
    """Cuts a group so that each portion has `samples` samples and the last one what is left."""
    portion: list[PhotoVariants] = []
    room = samples
    for photo in photos:
        first, left = photo.first, photo.variants
        while left:
            take = min(room, left)
            whole = take == photo.variants
            portion.append(photo if whole else photo._replace(first=first, variants=take))
            first, left, room = first + take, left - take, room - take
            if not room:
                yield portion
                portion, room = [], samples
    if portion:
        yield portion


def _next_index(found: Survey) -> int:
    used = [task_index(shard.path) for shard in (found.manifest.shards if found.manifest else ())]
    used += [task.index for task in (found.begun.plan.tasks if found.begun else ())]
    return max(used, default=-1) + 1
