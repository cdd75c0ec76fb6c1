"""Makes one sample of each shard again from its photo, and compares it with the stored one.

Finds what no checksum can: latents of other weights, or of another photo or recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.manifest import Manifest, open_dataset
from datagen.dataset.records import DrawnSample
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import META, ShardSample, stored_latents
from datagen.dataset.tasks import PhotoVariants, PlannedLq, ShardTask
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.archives import scan_archive
from datagen.photos.source_file import Rejection, SourceFile
from datagen.photos.sources import ARCHIVE
from datagen.review.verify import DatasetIssue
from datagen.samples.codecs import codec_of
from datagen.samples.encode import encode
from datagen.samples.pixels import decode_pixels
from datagen.samples.prepare import PreparedSample, SampleResult, prepare
from datagen.samples.sample import sample_key

_RELATIVE = 0.05
"""Of the mean size of a latent or pixel: another processor may round differently."""


class NotMade(NamedTuple):
    """A shard of which no sample could be made again."""

    shard: str
    missing: tuple[str, ...]
    """Why, for each of its photos: `/photos/7_LR4.png is gone`."""


def recompute_samples(
    uri: str, *, on_shard: Callable[[int], None] = lambda done: None
) -> tuple[list[DatasetIssue], list[NotMade]]:
    """`recompute` of a dataset, given its folder or manifest."""
    manifest, root = open_dataset(uri)
    return recompute(manifest, root, on_shard=on_shard)


def recompute(
    manifest: Manifest, root: str, *, on_shard: Callable[[int], None] = lambda done: None
) -> tuple[list[DatasetIssue], list[NotMade]]:
    """Recomputes on the CPU; the issues, and the shards none of whose photos is there any more, of
    pairs with its LQ.

    Shards that cannot be read are left to `verify_dataset`.

    Raises:
        FlowmapsrError: the list of photos or the codec cannot be read.
    """
    again = _Recomputer(manifest, root)
    issues: list[DatasetIssue] = []
    skipped: list[NotMade] = []
    for done, record in enumerate(manifest.shards, start=1):
        where = storage.join(root, record.path)
        try:
            samples = read_shard(where, sha256=record.sha256)
        except FlowmapsrError:
            continue
        missing: dict[str, None] = {}
        for sample in samples:
            made = again.make(sample)
            if isinstance(made, str):
                missing[made] = None
                continue
            if what := _difference(sample, made):
                issues.append(DatasetIssue(f"{where}#{sample.key}", what))
            break
        else:
            skipped.append(NotMade(record.path, tuple(missing)))
        on_shard(done)
    return issues, skipped


class _Recomputer:
    def __init__(self, manifest: Manifest, root: str) -> None:
        self._recipe = manifest.dataset_recipe(root)
        self._codec = codec_of(self._recipe)
        lines = KnownPhotos.read(root).lines
        self._photos = {sample_key(line.sha256, 0)[:-3]: line for line in lines if line.sha256}

    def make(self, sample: ShardSample) -> PreparedSample | Rejection | str:
        """The sample, or why there is none now; as text where its photo is missing or changed."""
        photo, _, variant = sample.key.rpartition("-")
        drawn, known = DrawnSample.model_validate_json(sample.meta), self._photos.get(photo)
        uri, real = known.uri if known else drawn.source, drawn.real_lq
        file = file_at(uri) if known and known.stamp else None
        if known is None or file is None:
            return f"{uri} is gone"
        lq_file = None if real is None else file_at(real.source)
        if real is not None and lq_file is None:
            return f"{real.source}, its LQ, is gone"
        lq = PlannedLq(lq_file, real.registration) if real and lq_file else None
        made = self._made(PhotoVariants(file, 0, 0, int(variant), 1, lq))
        if isinstance(made, Rejection):
            return made
        if made.sha256 != known.sha256:
            return f"{uri} is another photo now"
        if real is not None and made.drawn.real_lq != real:
            return f"{real.source}, its LQ, is another photo now"
        return made

    def _made(self, wanted: PhotoVariants) -> SampleResult:
        results = prepare(ShardTask(index=0, photos=(wanted,)), self._recipe, threads=1)
        if self._codec is not None:
            results = encode(results, self._codec, self._recipe, device="cpu")
        (made,) = results
        return made


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
    found = stored_latents(stored)
    for name, expected in made.latents.items():
        if not _alike(found.get(name), expected, tolerance=1e-3):
            return f"latent {name} is not what the codec makes of this photo"
    for name, one, two in (
        ("HQ", stored.hq_image, made.hq_image),
        ("LQ", stored.lq_image, made.lq_image),
    ):
        if two is not None and not _alike(_pixels(one), _pixels(two), tolerance=1):
            return f"{name} pixels are not what the recipe makes of this photo"
    return None


def _pixels(data: bytes | None) -> np.ndarray | None:
    return None if data is None else decode_pixels(data)


def _alike(found: np.ndarray | None, expected: np.ndarray | None, *, tolerance: float) -> bool:
    if found is None or expected is None or found.shape != expected.shape:
        return False
    one, two = found.astype(np.float32), expected.astype(np.float32)
    return bool(np.abs(one - two).mean() <= _RELATIVE * np.abs(two).mean() + tolerance)
