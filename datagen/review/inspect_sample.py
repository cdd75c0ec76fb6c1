"""Turns a sample's key, or its first digits, into the sample and its decoded pictures.

To find it, only the headers of tars are read, not the samples before it.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import ValidationError

from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.layout import REJECTED
from datagen.dataset.manifest import Manifest, load_manifest
from datagen.dataset.records import DrawnSample, ShardRecord, Split
from datagen.dataset.shard_index import find_sample
from datagen.dataset.shards import ShardSample
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.prefetch import read_ahead
from datagen.samples.codecs import codec_of
from datagen.samples.sample import sample_key, split_of
from datagen.samples.stored import Pictures, stored_pictures

_THREADS = 8
_SHOWN = 5


@dataclass(frozen=True)
class InspectedSample:
    """One sample, decoded; `shard` is relative to the dataset."""

    shard: str
    drawn: DrawnSample
    images: Pictures


def inspect_sample(root: str, key: str) -> InspectedSample:
    """Finds and decodes a sample of the dataset at `root`.

    Raises:
        FlowmapsrError: no photo or several have a key that begins with `key` (naming near ones), or
            the codec's weights are not those that made it.
    """
    manifest = load_manifest(root)
    whole, split = _resolve(root, manifest, key)
    record, sample = _find(root, manifest, whole, split)
    recipe = manifest.dataset_recipe(root)
    codec = codec_of(recipe)
    if manifest.codec and codec and codec.fingerprint != manifest.codec.fingerprint:
        raise FlowmapsrError(
            f"{root}: its latents were made by other codec weights than the present ones "
            f"({manifest.codec.fingerprint[:12]} then, {codec.fingerprint[:12]} now); "
            "restore the weights"
        )
    try:
        drawn = DrawnSample.model_validate_json(sample.meta)
        return InspectedSample(record.path, drawn, stored_pictures(sample, drawn, recipe, codec))
    except (ValidationError, FlowmapsrError) as error:
        raise FlowmapsrError(
            f"{storage.join(root, record.path)}#{whole}: this sample is damaged ({error}); "
            "`flowmapsr dataset verify` lists all damage"
        ) from error


def save_pictures(sample: InspectedSample, folder: str) -> list[str]:
    """Writes `<key>-hq.png`, `-lq.png` and `-neg.png`; their URIs.

    Raises:
        FlowmapsrError: a different file has one of these names; nothing is overwritten.
    """
    files = {
        storage.join(folder, f"{sample.drawn.key}-{name}.png"): _png(pixels)
        for name, pixels in sample.images.items()
    }
    for uri, data in files.items():
        if storage.exists(uri) and storage.read_bytes(uri) != data:
            raise FlowmapsrError(
                f"{uri}: another file has this name; move it away, or give another --output"
            )
    for uri, data in files.items():
        storage.write_bytes(uri, data)
    return list(files)


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _resolve(root: str, manifest: Manifest, key: str) -> tuple[str, Split]:
    """The whole key and its split, from the list of photos alone."""
    recipe = manifest.dataset_recipe(root)
    photos = KnownPhotos.read(root).hashes()
    keys = {
        sample_key(sha256, variant): sha256
        for sha256 in photos
        if sha256[:20].startswith(key[:20])
        for variant in range(recipe.samples_per_photo)
    }
    found = sorted(name for name in keys if name.startswith(key))
    if not found:
        names = sorted(sample_key(sha256, 0) for sha256 in photos)
        index = bisect_left(names, key)  # names beside it share most of its first digits
        near = sorted(keys) or names[max(0, index - 2) : index + 2]
        raise FlowmapsrError(
            f"{root}: no sample has a key that begins with {key!r}; near ones are {_some(near)}"
        )
    if len({keys[name] for name in found}) > 1:  # samples of one photo: its first
        raise FlowmapsrError(
            f"{root}: {len(found)} keys begin with {key!r} ({_some(found)}); give more of it"
        )
    return found[0], split_of(keys[found[0]], recipe.validation_fraction)


def _find(root: str, manifest: Manifest, key: str, split: Split) -> tuple[ShardRecord, ShardSample]:
    """The first shard that has the sample, and the sample; stops reading once found."""

    def read(record: ShardRecord) -> ShardSample | None:
        uri = storage.join(root, record.path)
        with storage.open_random(uri) as stream:
            return find_sample(stream, key, uri=uri)

    records = [record for record in manifest.shards if record.split == split]
    with closing(read_ahead(records, read, threads=_THREADS, ahead=_THREADS)) as samples:
        for record, sample in zip(records, samples, strict=True):
            if sample is not None:
                return record, sample
    raise FlowmapsrError(
        f"{root}: no shard holds {key}; this variant of its photo was rejected "
        f"(see {REJECTED}), or a shard is damaged (see `flowmapsr dataset verify`)"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
