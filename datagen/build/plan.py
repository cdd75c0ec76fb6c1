"""Turns a survey into the tasks of a build (`plan.json`): which photos go into which shards.

An interrupted build keeps its tasks as long as their photos are unchanged, so that it ends with the
bytes of an uninterrupted one. Reads headers, never pixels.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from datagen.build.restore import restore_manifest
from datagen.build.survey import Survey, survey
from datagen.dataset.known_photos import KnownPhoto, KnownPhotos, rejected_photo, write_reasons
from datagen.dataset.layout import PLAN, REJECTED, SHARDS, TASKS, task_index
from datagen.dataset.manifest import kept_manifests
from datagen.dataset.records import RejectedCount
from datagen.dataset.tasks import PhotoVariants, Plan, ShardTask
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.pairs.check import PairChecker, check_pairs
from datagen.pairs.registration import OFF
from datagen.photos import scan
from datagen.photos.decode import FILTERED
from datagen.photos.source_file import Rejection, SourceFile, kind_of
from datagen.photos.sources import Listing
from datagen.records import to_compact_json
from datagen.samples.buckets import TOO_SMALL, fitting_buckets
from datagen.samples.pipeline import check_pipeline
from datagen.settings import BucketSettings, DatasetRecipe

_PhotoGroups = dict[tuple[str, ...], list[PhotoVariants]]
"""Photos in their order, by the names of the buckets that they may fall into."""


def plan_dataset(
    recipe: DatasetRecipe, *, listing: Listing | None = None, map_chunks: scan.MapChunks = map
) -> Plan:
    """Makes or continues the plan and writes `plan.json`; before, a manifest that was lost is
    written again. The caller holds the dataset's lock.

    Raises:
        FlowmapsrError: as `survey`, or no photo or too few of them can be used.
    """
    found = survey(recipe, listing)
    if found.manifest_is_lost:
        restore_manifest(recipe)
        found = survey(recipe, found.listing)
    plan = make_plan(found, map_chunks=map_chunks)
    if plan.tasks or plan.rejected:
        storage.write_bytes(storage.join(recipe.output, PLAN), to_compact_json(plan))
    return plan


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of records that all stay: searching them for garbage doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def make_plan(found: Survey, *, map_chunks: scan.MapChunks = map) -> Plan:
    """The plan for a surveyed dataset; also records the new URIs of photos that moved."""
    recipe = found.recipe
    if recipe.augmentation.pipeline is not None:
        check_pipeline(recipe.augmentation.pipeline, recipe.buckets)
    previous = _previous_build(found)
    new_files = [file for file in found.new if file not in previous.files]
    photos, rejected = _scan(found, new_files, previous, map_chunks)
    groups, too_small = _group_by_buckets([*photos, *previous.released], recipe.buckets)
    tasks = _make_tasks(groups, samples=recipe.samples_per_shard, first_index=_next_index(found))
    rejected += [*previous.rejected, *too_small]
    for item in found.new_rejections:
        rejected.append(KnownPhoto(item.uri, 0, stamp="", sha256=None, reason=item.reason))
    plan = Plan(
        recipe=recipe,
        recipe_digest=recipe.digest(),
        base=found.base,
        tasks=(*previous.tasks, *tasks),
        rejected=tuple(sorted(rejected, key=lambda photo: photo.uri)),
        known_photos=len(found.known.hashes()),
        known_rejected=sum(map(_counts, found.known.rejected().values())),
    )
    enforce_limit(plan, {})
    if not plan.tasks and found.manifest is None:
        left_out = {photo.uri: photo.reason or "" for photo in plan.rejected}
        raise UnusablePhotos(plan, left_out, f"no photo of {', '.join(recipe.places)} can be used")
    return plan


def enforce_limit(plan: Plan, rejected: Mapping[str, str]) -> None:
    """Checks the number of photos that cannot be used; those that a filter of the recipe leaves out
    are not among them.

    Args:
        rejected: reasons by URI of the photos that finished tasks left out.

    Raises:
        FlowmapsrError: there are more than `max_rejected_fraction` allows.
    """
    left_out = {photo.uri: photo.reason or "" for photo in plan.rejected} | dict(rejected)
    bad = {uri for uri, reason in left_out.items() if _counts(reason)}
    planned = {photo.file.uri for task in plan.tasks for photo in task.photos}
    new = len((planned - left_out.keys()) | bad)
    count, total = plan.known_rejected + len(bad), plan.known_photos + plan.known_rejected + new
    limit = plan.recipe.max_rejected_fraction
    if bad and count > limit * total:
        most = f"more than max_rejected_fraction={limit:g} allows"
        raise UnusablePhotos(plan, left_out, f"{count} of {total} photos cannot be used, {most}")


def _counts(reason: str) -> bool:
    """Whether a photo left out for this reason cannot be used: it is no copy of another one, and
    it was not the recipe that asked for others."""
    return kind_of(reason) not in {scan.DUPLICATE, OFF, *FILTERED}


class UnusablePhotos(FlowmapsrError):
    """A build that stops because of its photos, all of which are listed in a file by then."""

    def __init__(self, plan: Plan, left_out: Mapping[str, str], what: str) -> None:
        # That of a finished dataset belongs to its manifest.
        folder = plan.output if plan.base is None else storage.join(plan.output, TASKS)
        uri = storage.join(folder, REJECTED)
        write_reasons(uri, left_out)
        by_reason = RejectedCount.of(left_out.values()).by_reason
        reasons = ", ".join(f"{count} {reason}" for reason, count in by_reason.items())
        super().__init__(
            f"{what}. Left out: {reasons}, listed in {uri}. Fix or remove them, or change "
            "max_rejected_fraction, filters or images. Finished shards are kept"
        )
        self.details = {"rejected": by_reason, "listed_in": uri}


@dataclass(frozen=True)
class _PreviousBuild:
    """What an interrupted build leaves to this one."""

    tasks: tuple[ShardTask, ...] = ()
    files: frozenset[SourceFile] = frozenset()
    """Planned, released or rejected."""
    hashes: Mapping[str, int] = field(default_factory=dict)
    """SHA-256 and bytes of photos whose samples are finished."""
    unfinished: tuple[SourceFile, ...] = ()
    """Planned, with samples that are not finished, or released."""
    released: tuple[PhotoVariants, ...] = ()
    """Unchanged photos of a task that is dropped, since another of its photos changed."""
    rejected: tuple[KnownPhoto, ...] = ()


def _previous_build(found: Survey) -> _PreviousBuild:
    if found.open_plan is None:
        return _PreviousBuild()
    listed, finished = set(found.listing.files), found.finished
    tasks: list[ShardTask] = []
    released: list[PhotoVariants] = []
    for task in found.open_plan.tasks:
        if task.index in finished or all(photo.file in listed for photo in task.photos):
            tasks.append(task)
        else:
            released += [photo for photo in task.photos if photo.file in listed]
    stamps = {(file.uri, file.stamp): file for file in found.listing.files}
    rejected = [p for p in found.open_plan.rejected if (p.uri, p.stamp) in stamps]
    planned = [photo.file for task in tasks for photo in task.photos]
    pending = [p.file for task in tasks if task.index not in finished for p in task.photos]
    free = [photo.file for photo in released]
    return _PreviousBuild(
        tasks=tuple(tasks),
        files=frozenset([*planned, *free, *(stamps[p.uri, p.stamp] for p in rejected)]),
        hashes={
            photo.sha256: photo.bytes
            for record in finished.values()
            for photo in record.photos
            if photo.sha256
        },
        unfinished=(*pending, *free),
        released=tuple(released),
        rejected=tuple(rejected),
    )


def _scan(
    found: Survey,
    new_files: Sequence[SourceFile],
    previous: _PreviousBuild,
    map_chunks: scan.MapChunks,
) -> tuple[list[PhotoVariants], list[KnownPhoto]]:
    """New photos and rejected ones; for content that only moved, its new URI is recorded."""
    recipe, known = found.recipe, found.known
    planned = _planned_hashes(new_files, previous.unfinished, map_chunks)
    result = scan.scan_and_dedupe(
        new_files,
        scan.HeaderReader(recipe.images, recipe.filters),
        known_hashes={**known.hashes(), **previous.hashes, **planned},
        map_chunks=map_chunks,
    )
    rejected = [rejected_photo(file, reason) for file, reason in result.rejected]
    elsewhere = found.missing | found.changed
    in_place = {line.sha256 for line in known.lines if line.stamp and line.uri not in elsewhere}
    moved: dict[str, SourceFile] = {}
    for digest, file in result.known.items():
        if digest in in_place or digest not in known.hashes():
            rejected.append(rejected_photo(file, scan.DUPLICATE))
        else:
            moved[digest] = file
    _update_known(found, moved)
    lq = found.listing.lq
    pairs = [(one.file, lq[one.file.uri]) for one in result.photos if one.file.uri in lq]
    checked = check_pairs(pairs, PairChecker(recipe.images, recipe.filters), map_chunks)
    photos = []
    # By content: neighbors in a folder are often alike, and a photo's location must not matter.
    for file, width, height, _ in sorted(result.photos, key=lambda one: (one.head, one.file.uri)):
        other = checked.get(file.uri)
        if isinstance(other, Rejection):
            rejected.append(rejected_photo(file, other.reason))
        else:
            photos.append(PhotoVariants(file, width, height, 0, recipe.samples_per_photo, lq=other))
    return photos, rejected


def _planned_hashes(
    new_files: Sequence[SourceFile], planned: Iterable[SourceFile], map_chunks: scan.MapChunks
) -> dict[str, int]:
    """SHA-256 and bytes of the unfinished photos that a new file may be a copy of."""
    sizes = {file.bytes for file in new_files}
    alike = sorted({file for file in planned if file.bytes in sizes})
    digests = (d for chunk in map_chunks(scan.hash_contents, scan.chunked(alike)) for d in chunk)
    return {digest: file.bytes for file, digest in zip(alike, digests, strict=True)}


def _update_known(found: Survey, moved: dict[str, SourceFile]) -> None:
    """Records where known photos are now, so that the next build need not read them again."""
    listed = {file.uri for file in found.listing.files}
    listed |= {item.uri for item in found.listing.rejected}
    known = found.known.superseded({file.uri for file in found.new}).moved(moved)
    known = KnownPhotos.of(
        line for line in known.lines if line.sha256 is not None or line.uri in listed
    )
    if found.manifest is not None and known != found.known:
        known.write(found.recipe.output)


def _group_by_buckets(
    photos: Iterable[PhotoVariants], settings: BucketSettings
) -> tuple[_PhotoGroups, list[KnownPhoto]]:
    """The groups, and the photos that fit no bucket."""
    groups: _PhotoGroups = defaultdict(list)
    too_small: list[KnownPhoto] = []

    @cache  # photos have few different sizes
    def fitting(width: int, height: int) -> tuple[str, ...]:
        found = fitting_buckets(settings, width=width, height=height)
        return tuple(bucket.name for _, bucket in found)

    for photo in photos:
        names = fitting(photo.width, photo.height)
        if names:
            groups[names].append(photo)
        else:
            too_small.append(rejected_photo(photo.file, TOO_SMALL))
    return groups, too_small


def _make_tasks(groups: _PhotoGroups, *, samples: int, first_index: int) -> Iterator[ShardTask]:
    """Tasks of `samples` samples each, the last one of a group with the rest."""
    portions = (photos for name in sorted(groups) for photos in _portions(groups[name], samples))
    for index, photos in enumerate(portions, start=first_index):
        # Not validated again: for a million photos that takes a third of the planning time.
        yield ShardTask.model_construct(index=index, photos=tuple(photos))


def _portions(photos: Sequence[PhotoVariants], samples: int) -> Iterator[list[PhotoVariants]]:
    portion: list[PhotoVariants] = []
    free = samples
    for photo in photos:
        first, left = photo.first, photo.variants
        while left:
            take = min(free, left)
            whole = take == photo.variants
            portion.append(photo if whole else photo._replace(first=first, variants=take))
            first, left, free = first + take, left - take, free - take
            if not free:
                yield portion
                portion, free = [], samples
    if portion:
        yield portion


def _next_index(found: Survey) -> int:
    used = [task_index(shard.path) for shard in (found.manifest.shards if found.manifest else ())]
    used += [task.index for task in (found.open_plan.tasks if found.open_plan else ())]
    newest = max(used, default=-1)
    if found.manifest is not None and newest < _newest_shard(found.recipe.output):
        # `manifest.json` was put back to an older one; a training may read what came after it.
        later = [one.path for kept in kept_manifests(found.recipe.output) for one in kept.shards]
        newest = max([newest, *map(task_index, later)])
    return newest + 1


def _newest_shard(output: str) -> int:
    """The highest number of a shard that is there, in the dataset or not."""
    found = storage.scan(storage.join(output, SHARDS))
    numbers = (entry.uri.removesuffix(".tar").rpartition("-")[2] for entry in found)
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)
