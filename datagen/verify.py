"""Turns a dataset into the list of its faults: every byte the manifest names is read and checked.

Knows the files of a dataset, not how they were made. Changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import cv2
import numpy as np
from pydantic import ValidationError

from datagen import storage
from datagen.errors import FlowmapsrError
from datagen.fields import Settings
from datagen.manifest import Manifest, ShardRecord, dataset_of, load_manifest, parse
from datagen.samples import DrawnSample
from datagen.shards import HQ_IMAGE, META, Latents, ShardSample, read_shard
from datagen.tasks import SHARDS


class Fault(Settings):
    """Something wrong with a dataset: the file or sample, and what."""

    where: str
    what: str


def verify_dataset(uri: str) -> list[Fault]:
    """Checks a whole dataset, given its folder or manifest; an empty list means it is sound."""
    root = dataset_of(uri)
    try:
        manifest = load_manifest(root)
    except FlowmapsrError as error:
        return [Fault(where=uri, what=str(error))]
    faults = [*_manifest_faults(manifest, root), *_stray_files(manifest, root)]
    keys: dict[str, str] = {}
    for record in manifest.shards:
        faults.extend(_shard_faults(manifest, record, root, keys))
    return faults


def _manifest_faults(manifest: Manifest, root: str) -> Iterator[Fault]:
    where = storage.join(root, "manifest.json")
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
    yield from _rejected_faults(manifest, root)


def _rejected_faults(manifest: Manifest, root: str) -> Iterator[Fault]:
    where = storage.join(root, "rejected.jsonl")
    try:
        count = len(storage.read_bytes(where).splitlines())
    except FlowmapsrError as error:
        yield Fault(where=where, what=str(error))
        return
    if count != manifest.rejected.count:
        yield Fault(
            where=where, what=f"{count} lines, the manifest counts {manifest.rejected.count}"
        )


def _stray_files(manifest: Manifest, root: str) -> Iterator[Fault]:
    folder = storage.join(root, SHARDS)
    if not storage.exists(folder):
        return
    named = {storage.join(root, record.path).removesuffix(".tar") for record in manifest.shards}
    for uri in storage.list_files(folder):
        stem = uri.removesuffix(".tar").removesuffix(".json").removesuffix(".summary")
        if stem not in named:
            yield Fault(where=uri, what="stray file: the manifest does not name this shard")


def _shard_faults(
    manifest: Manifest, record: ShardRecord, root: str, keys: dict[str, str]
) -> Iterator[Fault]:
    uri = storage.join(root, record.path)
    try:
        samples = read_shard(uri, sha256=record.sha256)
        committed = parse(ShardRecord, uri.removesuffix(".tar") + ".json")
    except FlowmapsrError as error:
        yield Fault(where=uri, what=str(error))
        return
    if committed != record:
        yield Fault(where=uri, what="its record and the manifest differ")
    if len(samples) != record.num_samples:
        yield Fault(where=uri, what=f"{len(samples)} samples, recorded are {record.num_samples}")
    for sample in samples:
        where = f"{uri}#{sample.key}"
        if sample.key in keys:
            yield Fault(where=where, what=f"this key is in {keys[sample.key]} too")
        keys[sample.key] = record.path
        for what in _sample_faults(manifest, record, sample):
            yield Fault(where=where, what=what)


def _sample_faults(manifest: Manifest, record: ShardRecord, sample: ShardSample) -> Iterator[str]:
    height, width = (int(side) for side in record.bucket.split("x"))
    shrink = manifest.codec.downsample
    shape = (manifest.codec.channels, height // shrink, width // shrink)
    try:
        latents = Latents.from_bytes(sample.latents)
        drawn = DrawnSample.model_validate_json(sample.meta)
    except FlowmapsrError as error:
        yield str(error)
        return
    except ValidationError as error:
        yield f"{META} is malformed ({error.error_count()} faults)"
        return
    for name, latent in (("hq", latents.hq), ("lq", latents.lq), ("neg", latents.neg)):
        if latent.shape != shape or latent.dtype != np.float16:
            yield f"latent {name} is {latent.dtype} {latent.shape}, not float16 {shape}"
        elif not np.isfinite(latent).all():
            yield f"latent {name} is not finite"
    if drawn.bucket != record.bucket:
        yield f"{META} says bucket {drawn.bucket}"
    yield from _hq_faults(manifest, sample, (height, width))


def _hq_faults(manifest: Manifest, sample: ShardSample, size: tuple[int, int]) -> Iterator[str]:
    expected = manifest.recipe["hq_jpeg_quality"] is not None
    if expected != (sample.hq_jpeg is not None):
        yield f"{HQ_IMAGE} {'missing' if expected else 'not asked for by the recipe'}"
    elif sample.hq_jpeg is not None:
        image = cv2.imdecode(np.frombuffer(sample.hq_jpeg, np.uint8), cv2.IMREAD_COLOR)
        if image is None or image.shape[:2] != size:
            yield f"{HQ_IMAGE} is no JPEG of {size[0]}x{size[1]}"
