"""Checks every byte of every file of a dataset and lists what is wrong; changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.layout import MANIFEST, PLAN, REJECTED, SOURCES, kept_path, record_path
from datagen.dataset.manifest import (
    Manifest,
    dataset_root,
    kept_digests,
    load_manifest,
    open_dataset,
)
from datagen.dataset.records import DrawnSample, RejectedCount, ShardRecord, Split
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample, stored_latents
from datagen.dataset.statistics import PartialStatistics, StatisticsCollector, statistics_of
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.lock import is_lock
from datagen.records import to_json
from datagen.review.verify_sample import sample_issues
from datagen.samples.sample import split_of
from datagen.settings import DatasetRecipe

_KEY = "S23"
_PHOTO_DIGITS = 20


class DatasetIssue(NamedTuple):
    """Something wrong with a dataset: the file or sample, and what."""

    where: str
    what: str


@dataclass(frozen=True)
class _CheckedShard:
    issues: list[DatasetIssue]
    keys: np.ndarray = field(default_factory=lambda: np.array([], _KEY))
    """As bytes: a dataset may have millions."""
    stats: PartialStatistics | None = None
    """What its samples add, unless one is damaged."""


def _issue(where: str, error: FlowmapsrError) -> DatasetIssue:
    """The error's text without the address that it begins with."""
    return DatasetIssue(where, str(error).removeprefix(where).removeprefix(":").strip())


def verify_dataset(
    uri: str, *, workers: int = 4, on_shard: Callable[[int, int], None] | None = None
) -> list[DatasetIssue]:
    """Checks a whole dataset, given its folder or manifest; an empty list means it is sound.

    The order of the issues is always the same. Memory: twice the largest shard per worker, 23 bytes
    per sample, and about 1 KB per photo.

    Args:
        workers: threads, each of which reads one shard at a time.
        on_shard: called with (shards done, total number of shards) after each.
    """
    root = dataset_root(uri)
    try:
        manifest = load_manifest(root)
    except FlowmapsrError as error:
        return [_issue(storage.join(root, MANIFEST), error)]
    issues = [*_manifest_issues(manifest, root), *_file_issues(manifest, root)]
    kept, earlier = _kept_manifests(root, issues)
    earlier -= set(manifest.shards)
    issues += _stray_files(manifest, root, kept, earlier)
    for record in sorted(earlier, key=lambda record: record.path):
        issues += _earlier_shard_issues(root, record)
    recipe = manifest.dataset_recipe(root)
    splits = _splits(recipe, issues)
    shards: list[_CheckedShard] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as threads:
        checks = threads.map(partial(_check_shard, manifest, recipe, splits), manifest.shards)
        for done, shard in enumerate(checks, start=1):
            issues += shard.issues
            shards.append(shard)
            if on_shard is not None:
                on_shard(done, len(manifest.shards))
    issues += _repeated_keys(manifest, root, [shard.keys for shard in shards])
    parts = [shard.stats for shard in shards if shard.stats is not None]
    return [
        *issues,
        *(_statistics_issues(manifest, root, parts) if len(parts) == len(shards) else []),
    ]


def _statistics_issues(
    manifest: Manifest, root: str, parts: list[PartialStatistics]
) -> Iterator[DatasetIssue]:
    """How the manifest's statistics differ from those of the samples; no sample knows the size of
    its photo, so that only their number is compared."""
    where = storage.join(root, MANIFEST)
    stated, found = manifest.stats, statistics_of(parts)
    for name, values in found.counts:
        expected = getattr(stated.counts, name)
        same = sum(values) == sum(expected) if name == "photo_side" else values == expected
        if not same:
            yield DatasetIssue(where, f"its counts of {name} are not those of the samples")
    latent = stated.latent
    same = latent.positions == found.latent.positions
    for name in ("mean", "std"):
        one, two = getattr(latent, name), getattr(found.latent, name)
        same = same and len(one) == len(two) and np.allclose(one, two, rtol=1e-4, atol=1e-4)
    if not same:
        yield DatasetIssue(where, "its statistics of latents are not those of the samples")


def _manifest_issues(manifest: Manifest, root: str) -> Iterator[DatasetIssue]:
    """What was not checked when the manifest was read."""
    where = storage.join(root, MANIFEST)
    if manifest.schema_version > 1 and storage.read_bytes(where) != to_json(manifest):
        yield DatasetIssue(where, "its bytes are not those that were written")
    totals = {
        "num_samples": (manifest.num_samples, sum(r.num_samples for r in manifest.shards)),
        "num_shards": (manifest.num_shards, len(manifest.shards)),
        "bytes": (manifest.bytes, sum(r.bytes for r in manifest.shards)),
    }
    for name, (stated, counted) in totals.items():
        if stated != counted:
            yield DatasetIssue(where, f"{name} is {stated}, its shards add up to {counted}")
    canonical = json.dumps(manifest.recipe, sort_keys=True, separators=(",", ":")).encode()
    if hashlib.sha256(canonical).hexdigest() != manifest.recipe_digest:
        yield DatasetIssue(where, "recipe_digest is not that of the recipe")


def _file_issues(manifest: Manifest, root: str) -> Iterator[DatasetIssue]:
    for name, digest in manifest.files.items():
        where = storage.join(root, name)
        try:
            data = storage.read_bytes(where)
        except FlowmapsrError as error:
            yield _issue(where, error)
            continue
        counted, stated = len(data.splitlines()), manifest.rejected.count
        if hashlib.sha256(data).hexdigest() != digest:
            yield DatasetIssue(where, "its checksum is not that of the manifest")
        elif name == REJECTED and counted != stated:
            yield DatasetIssue(where, f"{counted} lines, the manifest counts {stated}")
        elif name == REJECTED and _by_reason(data) != manifest.rejected.by_reason:
            yield DatasetIssue(where, "its counts by reason are not those of the manifest")


def _by_reason(rejected: bytes) -> dict[str, int] | None:
    """How often each reason is in `rejected.jsonl`; None where it cannot be read."""
    try:
        reasons = [json.loads(line)["reason"] for line in rejected.splitlines()]
        return RejectedCount.of(reasons).by_reason
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _kept_manifests(root: str, issues: list[DatasetIssue]) -> tuple[set[str], set[ShardRecord]]:
    """The files of the manifests that are kept, and all shards that they name."""
    files: set[str] = set()
    shards: set[ShardRecord] = set()
    for digest in kept_digests(root):
        uri = storage.join(root, kept_path(digest))
        files.add(uri)
        try:
            manifest = open_dataset(uri).manifest
        except FlowmapsrError as error:
            issues.append(_issue(uri, error))
            continue
        if manifest.digest != digest:
            issues.append(
                DatasetIssue(uri, f"its digest is {manifest.digest}, not that of its name")
            )
        shards.update(manifest.shards)
    return files, shards


def _earlier_shard_issues(root: str, record: ShardRecord) -> Iterator[DatasetIssue]:
    """Of a shard that only kept manifests name, as `manifest.json` was put back to an older one."""
    uri = storage.join(root, record.path)
    try:
        read_shard(uri, sha256=record.sha256)
    except FlowmapsrError as error:
        issue = _issue(uri, error)
        what = f"{issue.what}; a training that began with a manifest that names it cannot go on"
        yield DatasetIssue(uri, what)


def _stray_files(
    manifest: Manifest, root: str, kept: set[str], earlier: set[ShardRecord]
) -> Iterator[DatasetIssue]:
    found = set(storage.list_files(root))
    if storage.join(root, PLAN) in found:
        what = "a build is open: finish it with `flowmapsr dataset build`, then verify"
        yield DatasetIssue(storage.join(root, PLAN), what)
        return
    shards = {storage.join(root, record.path) for record in (*manifest.shards, *earlier)}
    named = {storage.join(root, name) for name in (MANIFEST, SOURCES, *manifest.files)} | kept
    for uri in sorted(found - named - shards - {record_path(shard) for shard in shards}):
        if not is_lock(uri):
            yield DatasetIssue(uri, "stray file: the manifest does not name it")


def _splits(recipe: DatasetRecipe, issues: list[DatasetIssue]) -> dict[str, Split] | None:
    """The split of every photo by the first digits of its hash; None if the list is damaged."""
    where = storage.join(recipe.output, SOURCES)
    try:
        hashes = KnownPhotos.read(recipe.output).hashes()
    except FlowmapsrError as error:
        issues.append(_issue(where, error))
        return None
    if not hashes:
        issues.append(DatasetIssue(where, "missing: no photo of the samples is known"))
        return None
    return {
        sha256[:_PHOTO_DIGITS]: split_of(sha256, recipe.validation_fraction) for sha256 in hashes
    }


def _check_shard(
    manifest: Manifest, recipe: DatasetRecipe, splits: dict[str, Split] | None, record: ShardRecord
) -> _CheckedShard:
    uri = storage.join(recipe.output, record.path)
    issues: list[DatasetIssue] = []
    try:
        if storage.read_bytes(record_path(uri)) != to_json(record):
            issues.append(DatasetIssue(record_path(uri), "this record and the manifest differ"))
    except FlowmapsrError as error:
        issues.append(_issue(record_path(uri), error))
    try:
        samples = read_shard(uri, sha256=record.sha256)
    except FlowmapsrError as error:
        return _CheckedShard([*issues, _issue(uri, error)])
    if len(samples) != record.num_samples:
        what = f"{len(samples)} samples, recorded are {record.num_samples}"
        issues.append(DatasetIssue(uri, what))
    for sample in samples:
        found = sample_issues(recipe, manifest.codec, record, sample)
        whats = [*found, *_split_issues(record, sample.key, splits)]
        issues += [DatasetIssue(f"{uri}#{sample.key}", what) for what in whats]
    keys = np.array([sample.key for sample in samples], _KEY)
    return _CheckedShard(issues, keys, None if issues else _statistics(manifest, samples))


def _statistics(manifest: Manifest, samples: list[ShardSample]) -> PartialStatistics:
    """Of sound samples."""
    collector = StatisticsCollector(manifest.codec)
    for sample in samples:
        drawn = DrawnSample.model_validate_json(sample.meta)
        collector.add(stored_latents(sample).get("hq"), drawn, photo_side=0)
    return collector.result()


def _split_issues(record: ShardRecord, key: str, splits: dict[str, Split] | None) -> Iterator[str]:
    if splits is None:
        return
    photo = key.rpartition("-")[0]
    if photo not in splits:
        yield f"{SOURCES} has no photo of this key"
    elif splits[photo] != record.split:
        yield f"a {splits[photo]} photo in a {record.split} shard"


def _repeated_keys(manifest: Manifest, root: str, keys: list[np.ndarray]) -> Iterator[DatasetIssue]:
    found, counts = np.unique(np.concatenate([*keys, np.array([], _KEY)]), return_counts=True)
    for key in found[counts > 1]:
        shards = [
            record.path
            for record, own in zip(manifest.shards, keys, strict=True)
            for _ in range(int((own == key).sum()))
        ]
        where = f"{storage.join(root, shards[0])}#{key.decode()}"
        yield DatasetIssue(where, f"this key is in {', '.join(shards[1:])} too")
