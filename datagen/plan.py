"""Turns a recipe into the list of shards to make (`plan.json`), and says which are still missing.

Reads headers and committed records, never pixels. Knows no codec.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Literal

from datagen import storage
from datagen.errors import FlowmapsrError
from datagen.fields import Settings
from datagen.images import ImageRejected
from datagen.manifest import MANIFEST, ShardRecord, load_manifest, parse, to_json
from datagen.samples import Split, draw_sample, split_of
from datagen.settings import DatasetRecipe
from datagen.sources import DUPLICATE, Rejection, SourceImage, list_sources

PLAN = "plan.json"
SHARDS = "shards"


class SampleTask(Settings):
    """One sample to make."""

    source: SourceImage
    variant: int


class ShardTask(Settings):
    """One shard to make; `path` is relative to the dataset."""

    path: str
    bucket: str
    split: Split
    samples: tuple[SampleTask, ...]

    @property
    def record_path(self) -> str:
        """Of the ShardRecord: its presence is the commit."""
        return self.path.removesuffix(".tar") + ".json"

    @property
    def summary_path(self) -> str:
        """Of the ShardSummary, written before the record."""
        return self.path.removesuffix(".tar") + ".summary.json"


class Plan(Settings):
    """What a build will make, decided by the recipe and the photos alone."""

    schema_version: Literal[1] = 1
    recipe: DatasetRecipe
    recipe_digest: str
    rejected: tuple[Rejection, ...]
    """Left out already: what the headers and hashes show."""
    tasks: tuple[ShardTask, ...]

    @property
    def output(self) -> str:
        return self.recipe.output

    def sources(self) -> list[SourceImage]:
        """Every photo that samples are made of, once, in the order of its hash."""
        found = {sample.source.sha256: sample.source for sample in self._samples()}
        return [found[digest] for digest in sorted(found)]

    def enforce_limit(self, rejected: set[str]) -> None:
        """Raises FlowmapsrError once too many photos are left out; `rejected` are URIs."""
        bad = rejected | {item.uri for item in self.rejected if item.reason != DUPLICATE}
        total = len({item.uri for item in self.sources()} | bad)
        limit = self.recipe.max_rejected_fraction
        if len(bad) > limit * total:
            raise FlowmapsrError(
                f"{len(bad)} of {total} photos cannot be used, more than max_rejected_fraction="
                f"{limit:g} allows, for example {', '.join(sorted(bad)[:3])}; mend or remove them, "
                "or raise max_rejected_fraction. Finished shards are kept"
            )

    def _samples(self) -> Iterator[SampleTask]:
        return (sample for task in self.tasks for sample in task.samples)


def make_plan(recipe: DatasetRecipe) -> Plan:
    """The plan of a recipe for the photos that are there now; writes nothing.

    Raises FlowmapsrError when sources are missing or empty, or too many photos cannot be used.
    """
    listing = list_sources(recipe.sources, images=recipe.images, filters=recipe.filters)
    rejected = list(listing.rejected)
    groups: dict[tuple[Split, str], list[SampleTask]] = defaultdict(list)
    for source in listing.images:
        split = split_of(source.sha256, recipe.validation_fraction)
        try:
            buckets = [draw_sample(recipe, source, v).bucket for v in range(recipe.variants)]
        except ImageRejected as error:
            rejected.append(Rejection(uri=source.uri, reason=error.reason))
            continue
        for variant, bucket in enumerate(buckets):
            groups[split, bucket].append(SampleTask(source=source, variant=variant))
    plan = Plan(
        recipe=recipe,
        recipe_digest=recipe.digest(),
        rejected=tuple(sorted(rejected, key=lambda item: item.uri)),
        tasks=tuple(_tasks(groups, recipe.samples_per_shard)),
    )
    plan.enforce_limit(set())
    if not plan.tasks:
        reasons = Counter(item.reason for item in plan.rejected)
        raise FlowmapsrError(
            f"no photo of {', '.join(recipe.sources)} can be used: "
            + ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        )
    return plan


def plan_dataset(recipe: DatasetRecipe) -> Plan:
    """Makes the plan and writes `plan.json`, or takes up the one that is there.

    Raises FlowmapsrError for an output that holds something else: another recipe (naming the
    fields), other photos, or no dataset at all.
    """
    _refuse_other_content(recipe)
    plan = make_plan(recipe)
    uri = storage.join(recipe.output, PLAN)
    if storage.exists(uri):
        _refuse_other_sources(parse(Plan, uri), plan)
    storage.write_bytes(uri, to_json(plan))
    return plan


def pending_tasks(plan: Plan) -> list[ShardTask]:
    """The tasks without a valid committed record."""
    return [task for task in plan.tasks if committed_record(plan, task) is None]


def committed_record(plan: Plan, task: ShardTask) -> ShardRecord | None:
    """The record of a finished shard; None if it, its summary or its tar is missing or unfit."""
    record_uri = storage.join(plan.output, task.record_path)
    if not storage.exists(record_uri):
        return None
    if not storage.exists(storage.join(plan.output, task.summary_path)):
        return None
    record = parse(ShardRecord, record_uri)
    same = (record.path, record.bucket, record.split) == (task.path, task.bucket, task.split)
    if not same or storage.size(storage.join(plan.output, task.path)) != record.bytes:
        return None
    return record


def _tasks(
    groups: dict[tuple[Split, str], list[SampleTask]], samples_per_shard: int
) -> Iterator[ShardTask]:
    for split, bucket in sorted(groups):
        samples = groups[split, bucket]
        for index, start in enumerate(range(0, len(samples), samples_per_shard)):
            yield ShardTask(
                path=f"{SHARDS}/{bucket}/{split}-{index:06d}.tar",
                bucket=bucket,
                split=split,
                samples=tuple(samples[start : start + samples_per_shard]),
            )


def _refuse_other_content(recipe: DatasetRecipe) -> None:
    output = recipe.output
    if not storage.exists(output):
        return
    if storage.size(output) is not None:
        raise FlowmapsrError(f"{output}: the output is a file; give a folder")
    if storage.exists(storage.join(output, MANIFEST)):
        _refuse_other_recipe(output, load_manifest(output).recipe, recipe)
    elif storage.exists(storage.join(output, PLAN)):
        _refuse_other_recipe(
            output, parse(Plan, storage.join(output, PLAN)).recipe.content(), recipe
        )
    else:
        files = storage.list_files(output)
        others = [uri for uri in files if not uri.endswith(storage.TEMPORARY_SUFFIX)]
        if others:
            raise FlowmapsrError(
                f"{output}: the output is not empty and is no dataset (it holds {others[0]}); "
                "give a new folder"
            )


def _refuse_other_recipe(output: str, found: dict[str, Any], recipe: DatasetRecipe) -> None:
    old, new = dict(_flat("", found)), dict(_flat("", recipe.content()))
    changes = [
        f"{field}: {old.get(field, 'absent')} → {new.get(field, 'absent')}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field, "absent") != new.get(field, "absent")
    ]
    if changes:
        raise FlowmapsrError(
            f"{output}: holds a dataset of another recipe ({'; '.join(changes)}); "
            "give another output, or put the recipe back"
        )


def _refuse_other_sources(found: Plan, plan: Plan) -> None:
    before = {item.sha256 for item in found.sources()}
    now = {item.sha256 for item in plan.sources()}
    if (found.tasks, found.rejected) != (plan.tasks, plan.rejected):
        raise FlowmapsrError(
            f"{plan.output}: the photos are not those this build was begun with "
            f"({len(now - before)} new, {len(before - now)} gone, others renamed or left out); "
            "put them back, or give another output"
        )


def _flat(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    """Leaves of nested settings under dotted names."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), item)
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _flat(f"{prefix}.{index}", item)
    else:
        yield prefix, value
