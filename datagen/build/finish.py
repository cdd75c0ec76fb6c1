"""Turns the records of finished tasks into a finished dataset: known photos, pictures, manifest.

Every step can be repeated; the manifest is the commit, and what comes after it only cleans up.
"""

from __future__ import annotations

from itertools import zip_longest

from datagen.build.plan import UnusablePhotos, enforce_limit
from datagen.build.survey import finished_tasks
from datagen.dataset import layout
from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.manifest import (
    Manifest,
    file_hashes,
    kept_manifests,
    load_manifest,
    write_manifest,
)
from datagen.dataset.records import CodecRecord, DrawnSample, RejectedCount, ShardRecord
from datagen.dataset.shard_index import read_shard
from datagen.dataset.statistics import PartialStatistics, statistics_of
from datagen.dataset.tasks import Plan, ShardTask, TaskRecord
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.review.pictures import choose_samples, render_histograms, render_preview
from datagen.samples.codecs import codec_of
from datagen.samples.stored import Pictures, stored_pictures

_PREVIEW_SAMPLES = 6


def pending_tasks(plan: Plan) -> list[ShardTask]:
    """The tasks that are not committed, or whose shards do not all exist."""
    finished = finished_tasks(plan)
    return [task for task in plan.tasks if task.index not in finished]


class RejectionLimit:
    """Stops a build as soon as more photos are left out than its recipe allows."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rejected: dict[str, str] = {}

    def check(self, record: TaskRecord) -> None:
        """Counts the rejections of a finished task; FlowmapsrError if there are too many."""
        if record.rejected:
            self._rejected |= record.rejected
            enforce_limit(self._plan, self._rejected)


def finish(plan: Plan) -> Manifest:
    """Commits the dataset: checks that every task is done and writes the manifest last.

    Raises:
        FlowmapsrError: tasks are missing (naming them), or too many photos were left out.
    """
    records = _all_records(plan)
    rejected = {uri: why for record in records for uri, why in record.rejected.items()}
    enforce_limit(plan, rejected)
    if plan.base is None and not any(record.shards for record in records):
        raise UnusablePhotos(plan, rejected, "no photo can be used")
    before = load_manifest(plan.output) if plan.base is not None else None
    if before is not None and not (records or plan.rejected):
        clean_up(plan.output, before)
        return before
    known = _known_photos(plan, records)
    manifest = _manifest(plan, before, records, known)
    known.write(plan.output)
    known.write_rejected(plan.output)
    preview = render_preview(_preview_rows(plan, manifest.shards))
    storage.write_bytes(storage.join(plan.output, layout.PREVIEW), preview)
    histograms = render_histograms(manifest.stats)
    storage.write_bytes(storage.join(plan.output, layout.HISTOGRAMS), histograms)
    hashes = file_hashes(plan.output, (layout.REJECTED, layout.PREVIEW, layout.HISTOGRAMS))
    manifest = manifest.model_copy(update={"files": hashes})
    write_manifest(plan.output, manifest)
    clean_up(plan.output, manifest)
    return manifest


def clean_up(output: str, manifest: Manifest) -> None:
    """Deletes what is not in the finished dataset, nor in a state of it that is kept, which a
    training may read; `plan.json` last, by which the next build knows that one has died here."""
    tasks, shards = (storage.join(output, name) + "/" for name in (layout.TASKS, layout.SHARDS))
    found = storage.list_files(output)
    left = {uri for uri in found if uri.startswith(shards)} - _files_of_shards(output, manifest)
    if left:  # seldom, and only then all the kept manifests are read
        left.difference_update(*(_files_of_shards(output, kept) for kept in kept_manifests(output)))
    for uri in found:
        if uri.startswith(tasks) or uri in left:
            storage.delete(uri)
    storage.remove_leftovers(output)
    storage.delete_empty_folder(storage.join(output, layout.TASKS))
    storage.delete(storage.join(output, layout.PLAN))


def _files_of_shards(output: str, manifest: Manifest) -> set[str]:
    tars = {storage.join(output, shard.path) for shard in manifest.shards}
    return tars | {layout.record_path(uri) for uri in tars}


def _all_records(plan: Plan) -> list[TaskRecord]:
    finished = finished_tasks(plan)
    missing = [task.path for task in plan.tasks if task.index not in finished]
    if missing:
        raise FlowmapsrError(
            f"{plan.output}: {len(missing)} of {len(plan.tasks)} tasks are missing: "
            f"{', '.join(missing[:20])}; run the same command again to build them"
        )
    return [finished[task.index] for task in plan.tasks]


def _known_photos(plan: Plan, records: list[TaskRecord]) -> KnownPhotos:
    """Old and new photos; FlowmapsrError if two of them became equal during the build."""
    made = [photo for record in records for photo in record.photos]
    by_hash: dict[str, str] = {}
    for photo in made:
        if photo.sha256 and by_hash.setdefault(photo.sha256, photo.uri) != photo.uri:
            raise FlowmapsrError(
                f"{photo.uri} became a copy of {by_hash[photo.sha256]} during the build; "
                f"remove it and the files in {storage.join(plan.output, layout.TASKS)}, and run "
                "the same command again"
            )
    # Samples of one photo may be in two tasks: keep the record that names a rejected one.
    partly = {photo.uri: photo for photo in made if photo.sha256 and photo.reason}
    known = [partly.get(photo.uri, photo) if photo.sha256 else photo for photo in made]
    return KnownPhotos.of([*KnownPhotos.read(plan.output).lines, *plan.rejected, *known])


def _manifest(
    plan: Plan, before: Manifest | None, records: list[TaskRecord], known: KnownPhotos
) -> Manifest:
    new = [shard for record in records for shard in record.shards]
    shards = tuple(sorted([*(before.shards if before else ()), *new], key=lambda shard: shard.path))
    earlier = [PartialStatistics.of(before.stats, before.codec)] if before else []
    return Manifest(
        recipe=plan.recipe.content(),
        recipe_digest=plan.recipe.digest(),
        sources=tuple(sorted({*(before.sources if before else ()), *plan.recipe.sources})),
        pairs=tuple(sorted({*(before.pairs if before else ()), *plan.recipe.pairs}, key=str)),
        codec=_one_codec(plan, before, records),
        num_samples=sum(shard.num_samples for shard in shards),
        num_shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        shards=shards,
        rejected=RejectedCount.of(known.rejected().values()),
        stats=statistics_of([*earlier, *(record.stats for record in records)]),
    )


def _one_codec(
    plan: Plan, before: Manifest | None, records: list[TaskRecord]
) -> CodecRecord | None:
    first = before.codec if before else records[0].stats.codec
    for record in records:
        if record.stats.codec != first:
            raise FlowmapsrError(
                f"{plan.output}: task {record.index} was encoded by other codec weights than the "
                "rest of the dataset; put the weights back, remove its file in tasks/ and run the "
                "same command again"
            )
    return first


def _preview_rows(
    plan: Plan, shards: tuple[ShardRecord, ...]
) -> list[tuple[DrawnSample, Pictures]]:
    """The first samples of shards spread over the dataset, decoded from what was stored."""
    codec = codec_of(plan.recipe)
    count = min(_PREVIEW_SAMPLES, len(shards))
    chosen = [shards[index * len(shards) // count] for index in range(count)]
    firsts = [read_shard(storage.join(plan.output, one.path))[:_PREVIEW_SAMPLES] for one in chosen]
    samples = {
        sample.key: sample
        for rank in zip_longest(*firsts)  # the first of every shard, then the second, ...
        for sample in rank
        if sample is not None
    }
    chosen_samples = [samples[key] for key in choose_samples(samples, _PREVIEW_SAMPLES)]
    drawn = [DrawnSample.model_validate_json(sample.meta) for sample in chosen_samples]
    return [
        (one, stored_pictures(sample, one, plan.recipe, codec))
        for one, sample in zip(drawn, chosen_samples, strict=True)
    ]
