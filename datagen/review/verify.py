"""Turns a dataset into the list of its faults: every byte of every file is read and checked.

Knows the files of a dataset, not how they were made. Changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from datagen.dataset.known_photos import Ledger
from datagen.dataset.layout import MANIFEST, PLAN, REJECTED, SOURCES, record_path
from datagen.dataset.manifest import Manifest, open_dataset
from datagen.dataset.records import ShardRecord, Split
from datagen.dataset.shards import read_shard
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.lock import is_lock
from datagen.records import FrozenModel, to_json
from datagen.review.verify_samples import sample_faults
from datagen.samples.sample import split_of

OnShard = Callable[[int, int], None]
_KEY = "S23"
_PHOTO_DIGITS = 20


class Fault(FrozenModel):
    """Something wrong with a dataset: the file or sample, and what."""

    where: str
    what: str


@dataclass(frozen=True)
class _ShardReport:
    faults: list[Fault]
    keys: np.ndarray
    """Of its samples, as bytes: a dataset may have millions."""


def verify_dataset(uri: str, *, workers: int = 4, on_shard: OnShard | None = None) -> list[Fault]:
    """Checks a whole dataset, given its folder or manifest; an empty list means it is sound.

    The order of the faults is always the same. Memory: twice the largest shard for each worker,
    23 bytes a sample, and about 1 KB a photo.

    Args:
        workers: threads, each of which reads a shard at a time.
        on_shard: called with (shards done, shards in all) after each.
    """
    try:
        manifest, root = open_dataset(uri)
    except FlowmapsrError as error:
        return [Fault(where=uri, what=str(error))]
    faults = [*_manifest_faults(manifest, root), *_file_faults(manifest, root)]
    faults += _stray_files(manifest, root)
    splits = _splits(manifest, root, faults)
    keys: list[np.ndarray] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as threads:
        reports = threads.map(
            lambda record: _shard(manifest, record, root, splits), manifest.shards
        )
        for done, report in enumerate(reports, start=1):
            faults += report.faults
            keys.append(report.keys)
            if on_shard is not None:
                on_shard(done, len(manifest.shards))
    return [*faults, *_repeated_keys(manifest, root, keys)]


def _manifest_faults(manifest: Manifest, root: str) -> Iterator[Fault]:
    """What its own digest, checked when it was read, does not tell."""
    where = storage.join(root, MANIFEST)
    if manifest.schema_version > 1 and storage.read_bytes(where) != to_json(manifest):
        yield Fault(where=where, what="its bytes are not those that were written")
    totals = {
        "num_samples": (manifest.num_samples, sum(r.num_samples for r in manifest.shards)),
        "num_shards": (manifest.num_shards, len(manifest.shards)),
        "bytes": (manifest.bytes, sum(r.bytes for r in manifest.shards)),
    }
    for name, (stated, counted) in totals.items():
        if stated != counted:
            yield Fault(where=where, what=f"{name} is {stated}, its shards add up to {counted}")
    canonical = json.dumps(manifest.recipe, sort_keys=True, separators=(",", ":")).encode()
    if hashlib.sha256(canonical).hexdigest() != manifest.recipe_digest:
        yield Fault(where=where, what="recipe_digest is not that of the recipe")


def _file_faults(manifest: Manifest, root: str) -> Iterator[Fault]:
    for name, digest in manifest.files.items():
        where = storage.join(root, name)
        try:
            data = storage.read_bytes(where)
        except FlowmapsrError as error:
            yield Fault(where=where, what=str(error))
            continue
        if hashlib.sha256(data).hexdigest() != digest:
            yield Fault(where=where, what="its checksum is not that of the manifest")
        elif name == REJECTED and len(data.splitlines()) != manifest.rejected.count:
            counted, stated = len(data.splitlines()), manifest.rejected.count
            yield Fault(where=where, what=f"{counted} lines, the manifest counts {stated}")


def _stray_files(manifest: Manifest, root: str) -> Iterator[Fault]:
    found = set(storage.list_files(root))
    if storage.join(root, PLAN) in found:
        what = "a build is open: finish it with `flowmapsr dataset build`, then verify"
        yield Fault(where=storage.join(root, PLAN), what=what)
        return
    shards = {storage.join(root, record.path) for record in manifest.shards}
    named = {storage.join(root, name) for name in (MANIFEST, SOURCES, *manifest.files)}
    for uri in sorted(found - named - shards - {record_path(shard) for shard in shards}):
        if not is_lock(uri):
            yield Fault(where=uri, what="stray file: the manifest does not name it")


def _splits(manifest: Manifest, root: str, faults: list[Fault]) -> dict[str, Split] | None:
    """The split of every photo by the first digits of its hash; None if the list is damaged."""
    where = storage.join(root, SOURCES)
    try:
        hashes = Ledger.read(root).hashes()
    except FlowmapsrError as error:
        faults.append(Fault(where=where, what=str(error)))
        return None
    if not hashes:
        faults.append(Fault(where=where, what="missing: no photo of the samples is known"))
        return None
    fraction = manifest.recipe["validation_fraction"]
    return {sha256[:_PHOTO_DIGITS]: split_of(sha256, fraction) for sha256 in hashes}


def _shard(
    manifest: Manifest, record: ShardRecord, root: str, splits: dict[str, Split] | None
) -> _ShardReport:
    uri = storage.join(root, record.path)
    record_uri = record_path(uri)
    faults: list[Fault] = []
    try:
        if storage.read_bytes(record_uri) != to_json(record):
            faults.append(Fault(where=record_uri, what="this record and the manifest differ"))
    except FlowmapsrError as error:
        faults.append(Fault(where=record_uri, what=str(error)))
    try:
        samples = read_shard(uri, sha256=record.sha256)
    except FlowmapsrError as error:
        return _ShardReport([*faults, Fault(where=uri, what=str(error))], np.array([], _KEY))
    if len(samples) != record.num_samples:
        what = f"{len(samples)} samples, recorded are {record.num_samples}"
        faults.append(Fault(where=uri, what=what))
    for sample in samples:
        found = sample_faults(manifest, record, sample)
        whats = [*found, *_split_faults(record, sample.key, splits)]
        faults += [Fault(where=f"{uri}#{sample.key}", what=what) for what in whats]
    return _ShardReport(faults, np.array([sample.key for sample in samples], _KEY))


def _split_faults(record: ShardRecord, key: str, splits: dict[str, Split] | None) -> Iterable[str]:
    if splits is None:
        return
    photo = key.rpartition("-")[0]
    if photo not in splits:
        yield f"{SOURCES} has no photo of this key"
    elif splits[photo] != record.split:
        yield f"a {splits[photo]} photo in a {record.split} shard"


def _repeated_keys(manifest: Manifest, root: str, keys: Sequence[np.ndarray]) -> Iterator[Fault]:
    found, counts = np.unique(np.concatenate([*keys, np.array([], _KEY)]), return_counts=True)
    for key in found[counts > 1]:
        shards = [
            record.path
            for record, own in zip(manifest.shards, keys, strict=True)
            for _ in range(int((own == key).sum()))
        ]
        where = f"{storage.join(root, shards[0])}#{key.decode()}"
        yield Fault(where=where, what=f"this key is in {', '.join(shards[1:])} too")
