"""Writes the manifest of a finished dataset again, where only that was lost: from the copy that is
kept, or without one from its shards.

Counts of photo sizes come from the photos; of one that is gone, its crop stands for it.
"""

from __future__ import annotations

from datagen.dataset import layout
from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.manifest import Manifest, file_hashes, kept_manifests, write_manifest
from datagen.dataset.records import CodecRecord, DrawnSample, RejectedCount, ShardRecord
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import stored_latents
from datagen.dataset.statistics import PartialStatistics, StatisticsCollector, statistics_of
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.scan import HeaderReader, ScannedPhoto
from datagen.records import read_record
from datagen.review.pictures import render_histograms
from datagen.review.recompute import file_at, recompute
from datagen.samples.codecs import codec_of, codec_record
from datagen.settings import DatasetRecipe


def restore_manifest(recipe: DatasetRecipe) -> Manifest:
    """The manifest, written; its digest is that of the lost one. The caller holds the lock.

    Raises:
        FlowmapsrError: a shard is not whole, or the recipe is not seen to have made the samples.
    """
    output = recipe.output
    shards = _shard_records(output)
    for kept in kept_manifests(output):
        if kept.shards == tuple(shards) and kept.recipe_digest == recipe.digest():
            write_manifest(output, kept)
            return kept
    known = KnownPhotos.read(output)
    record = codec_record(recipe, codec_of(recipe))
    sides = _photo_sides(recipe, known)
    manifest = Manifest(
        recipe=recipe.content(),
        recipe_digest=recipe.digest(),
        sources=tuple(sorted(recipe.sources)),
        pairs=tuple(sorted(recipe.pairs, key=str)),
        codec=record,
        num_samples=sum(shard.num_samples for shard in shards),
        num_shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        shards=tuple(shards),
        rejected=RejectedCount.of(known.rejected().values()),
        stats=statistics_of(_statistics(output, shard, record, sides) for shard in shards),
    )
    issues, skipped = recompute(manifest, output)
    if issues or len(skipped) == len(shards):
        why = str(issues[0].what) if issues else "none of its photos is there to tell"
        raise FlowmapsrError(
            f"{output}: its {layout.MANIFEST} is lost, and this recipe is not seen to have made "
            f"its samples ({why}); restore the file, or give the recipe and photos it was made of"
        )
    known.write_rejected(output)
    histograms = storage.join(output, layout.HISTOGRAMS)
    storage.write_bytes(histograms, render_histograms(manifest.stats))
    files = [layout.REJECTED, layout.HISTOGRAMS]
    files += [layout.PREVIEW] * storage.exists(storage.join(output, layout.PREVIEW))
    manifest = manifest.model_copy(update={"files": file_hashes(output, files)})
    write_manifest(output, manifest)
    return manifest


def _shard_records(output: str) -> list[ShardRecord]:
    folder = storage.join(output, layout.SHARDS)
    found = storage.list_files(folder)
    tars = [uri for uri in found if uri.endswith(".tar")]
    records = []
    for uri in tars:
        record = read_record(layout.record_path(uri), ShardRecord, remedy="restore the file")
        if record is None:
            raise FlowmapsrError(f"{uri}: its record {layout.record_path(uri)} is lost; restore it")
        records.append(record)
    lost = set(found) - set(tars) - {layout.record_path(uri) for uri in tars}
    if lost:
        raise FlowmapsrError(f"{min(lost)}: there is no shard beside it; restore that")
    return sorted(records, key=lambda record: record.path)


def _photo_sides(recipe: DatasetRecipe, known: KnownPhotos) -> dict[str, int]:
    """Shorter side by the beginning of a key, of the photos that are there."""
    lines = [line for line in known.lines if line.sha256 and line.stamp]
    files = {line.sha256: file for line in lines if (file := file_at(line.uri))}
    found = HeaderReader(recipe.images, recipe.filters)(list(files.values()))
    return {
        str(sha256)[:20]: min(photo.width, photo.height)
        for sha256, photo in zip(files, found, strict=True)
        if isinstance(photo, ScannedPhoto)
    }


def _statistics(
    output: str, shard: ShardRecord, codec: CodecRecord | None, sides: dict[str, int]
) -> PartialStatistics:
    collector = StatisticsCollector(codec)
    for sample in read_shard(storage.join(output, shard.path), sha256=shard.sha256):
        drawn = DrawnSample.model_validate_json(sample.meta)
        side = sides.get(sample.key[:20], min(drawn.crop.width, drawn.crop.height))
        collector.add(stored_latents(sample).get("hq"), drawn, photo_side=side)
    return collector.result()
