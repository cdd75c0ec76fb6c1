"""Makes one sample of each shard again from its photo, and compares it with the stored one.

Finds what no checksum can: latents of other weights, or of another photo or recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.manifest import Manifest, open_dataset
from datagen.dataset.records import DrawnSample
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import META, Latents, ShardSample
from datagen.dataset.tasks import PhotoVariants, ShardTask
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.archives import scan_archive
from datagen.photos.source_file import Rejection, SourceFile
from datagen.photos.sources import ARCHIVE
from datagen.review.verify import DatasetIssue
from datagen.samples.codecs import load_codec
from datagen.samples.encode import encode
from datagen.samples.prepare import PreparedSample, prepare
from datagen.samples.sample import sample_key

_TOLERANCE = 0.05
"""Of the mean size of a latent: another processor may round differently."""


def recompute_samples(
    uri: str, *, on_shard: Callable[[int], None] = lambda done: None
) -> tuple[list[DatasetIssue], list[str]]:
    """`recompute` of a dataset, given its folder or manifest."""
    manifest, root = open_dataset(uri)
    return recompute(manifest, root, on_shard=on_shard)


def recompute(
    manifest: Manifest, root: str, *, on_shard: Callable[[int], None] = lambda done: None
) -> tuple[list[DatasetIssue], list[str]]:
    """Recomputes on the CPU; the issues, and the shards none of whose photos is there any more.

    Shards that cannot be read are left to `verify_dataset`.

    Raises:
        FlowmapsrError: the list of photos or the codec cannot be read.
    """
    again = _Recomputer(manifest, root)
    issues: list[DatasetIssue] = []
    skipped: list[str] = []
    for done, record in enumerate(manifest.shards, start=1):
        where = storage.join(root, record.path)
        try:
            samples = read_shard(where, sha256=record.sha256)
        except FlowmapsrError:
            continue
        pairs = ((sample, again.make(sample.key)) for sample in samples)
        stored, made = next(((one, two) for one, two in pairs if two is not None), (None, None))
        if stored is None or made is None:
            skipped.append(record.path)
        elif what := _difference(stored, made):
            issues.append(DatasetIssue(f"{where}#{stored.key}", what))
        on_shard(done)
    return issues, skipped


class _Recomputer:
    def __init__(self, manifest: Manifest, root: str) -> None:
        self._recipe = manifest.dataset_recipe(root)
        self._codec = load_codec(self._recipe.codec)
        lines = KnownPhotos.read(root).lines
        self._photos = {sample_key(line.sha256, 0)[:-3]: line for line in lines if line.sha256}

    def make(self, key: str) -> PreparedSample | Rejection | None:
        """The sample, or why there is none now; None without the photo, or with another one."""
        photo, _, variant = key.rpartition("-")
        known = self._photos.get(photo)
        file = file_at(known.uri) if known and known.stamp else None
        if known is None or file is None:
            return None
        wanted = PhotoVariants(file, 0, 0, int(variant), 1)
        prepared = prepare(ShardTask(index=0, photos=(wanted,)), self._recipe, threads=1)
        (made,) = encode(prepared, self._codec, batch=1, device="cpu")
        same = isinstance(made, Rejection) or made.sha256 == known.sha256
        return made if same else None


def file_at(uri: str) -> SourceFile | None:
    """The photo at the URI, in an archive too; None if there is none that can be read."""
    try:
        entry = storage.entry(uri)
        if entry is not None:
            return SourceFile(uri, entry.bytes, entry.stamp)
        archive, inside, _ = uri.partition(f"{ARCHIVE}#")
        return _members(archive + ARCHIVE).get(uri) if inside else None
    except storage.UnreadableError:
        return None


@lru_cache(maxsize=4)
def _members(archive: str) -> dict[str, SourceFile]:
    found = scan_archive(archive, "")
    return {item.uri: item for item in found if isinstance(item, SourceFile)}


def _difference(stored: ShardSample, made: PreparedSample | Rejection) -> str | None:
    if isinstance(made, Rejection):
        return f"its photo gives no sample now: {made.reason}"
    drawn = DrawnSample.model_validate_json(stored.meta)
    if made.drawn.model_copy(update={"source": drawn.source}) != drawn:
        return f"{META} is not what the recipe draws for this photo"
    assert made.latents is not None, "an encoded sample"
    found = vars(Latents.from_bytes(stored.latents))
    for name, expected in vars(made.latents).items():
        one, two = found[name].astype(np.float32), expected.astype(np.float32)
        if one.shape != two.shape or not _alike(one, two):
            return f"latent {name} is not what the codec makes of this photo"
    return None


def _alike(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).mean() <= _TOLERANCE * np.abs(expected).mean() + 1e-3)
