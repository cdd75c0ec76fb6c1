"""Where the CPU time of a whole build goes: each part alone, and what the whole takes beyond them.

Run as `python -m tests.benchmarks.build_profile`: samples of 256x256 pixels with the codec `dct8`,
two of each photo, on one thread.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch

from datagen.build.builder import ShardBuilder
from datagen.build.plan import plan_dataset
from datagen.dataset.shards import ShardSample, ShardWriter, write_latents
from datagen.dataset.statistics import StatisticsCollector
from datagen.photos.decode import load_image, upright_photo
from datagen.records import to_json
from datagen.samples.codecs import codec_record, load_codec
from datagen.samples.encode import encode
from datagen.samples.pixels import hq_image
from datagen.samples.prepare import PreparedSample, prepare
from datagen.samples.sample import Photo, draw_sample, make_pixels
from datagen.settings import DatasetRecipe
from tests.benchmarks.build import LONG_SHARD, VARIANTS, build_recipe, write_photos

TURNS = 200


@dataclass
class _Table:
    """Milliseconds of each part for one sample."""

    total: float = 0.0

    def row(self, part: str, milliseconds: float) -> None:
        self.total += milliseconds
        print(f"| {part} | {milliseconds:.2f} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos")
        recipe = build_recipe(folder, "one", {"kind": "dct8"}, samples_per_shard=LONG_SHARD)
        print("| part | CPU ms a sample |\n|---|---|", flush=True)
        table = _Table()
        sample = _make(table, sorted((folder / "photos").iterdir()), recipe)
        _store(table, folder / "shard.tar", sample, recipe)
        whole = _whole(recipe)
        table.row("copies between them, threads, records", whole - table.total)
        print(f"| the whole build | {whole:.2f} |")


def _milliseconds(work: Callable[[], object], *, turns: int = TURNS) -> float:
    work()
    start = time.process_time()
    for _ in range(turns):
        work()
    return (time.process_time() - start) / turns * 1e3


def _whole(recipe: DatasetRecipe) -> float:
    (task,) = plan_dataset(recipe).tasks
    builder = ShardBuilder(recipe)
    return _milliseconds(lambda: builder(task), turns=TURNS // 20) / LONG_SHARD


def _make(table: _Table, photos: list[Path], recipe: DatasetRecipe) -> PreparedSample:
    """A sample with its latents. The parts whose work is drawn are measured over all samples."""
    files = [path.read_bytes() for path in photos]
    decoded = [_decoded(path, data, recipe) for path, data in zip(photos, files, strict=True)]
    jobs = [(photo, variant) for photo in decoded for variant in range(VARIANTS)]
    drawn = [(photo.pixels, draw_sample(recipe, photo, variant)) for photo, variant in jobs]
    (task,) = plan_dataset(recipe).tasks
    prepared = list(prepare(task, recipe, threads=1))
    codec = load_codec(recipe.codec)

    def each(work: Callable[[], object]) -> float:
        return _milliseconds(work, turns=TURNS // 20) / len(jobs)

    reading = each(
        lambda: [_decoded(path, data, recipe) for path, data in zip(photos, files, strict=True)]
    )
    table.row("decode the photo", reading)
    table.row("crop, degrade", each(lambda: [make_pixels(*one) for one in drawn]))
    hq = make_pixels(*drawn[0]).hq
    table.row("JPEG of the HQ", _milliseconds(lambda: hq_image(hq, recipe)))
    table.row("encode", each(lambda: list(encode(prepared, codec, recipe, device="cpu"))))
    (sample, *_) = encode(prepared, codec, recipe, device="cpu")
    assert isinstance(sample, PreparedSample)
    return sample


def _decoded(path: Path, data: bytes, recipe: DatasetRecipe) -> Photo:
    pixels = upright_photo(load_image(data, recipe.images), recipe.images)
    return Photo(str(path), hashlib.sha256(data).hexdigest(), pixels)


def _store(table: _Table, path: Path, sample: PreparedSample, recipe: DatasetRecipe) -> None:
    collector = StatisticsCollector(codec_record(recipe, load_codec(recipe.codec)))
    latents, meta = write_latents(sample.latents), to_json(sample.drawn)
    stored = ShardSample(sample.drawn.key, latents, meta, sample.hq_image)
    content = stored.members().values()

    def counted() -> None:
        collector.add(sample.latents["hq"], sample.drawn, photo_side=sample.photo_side)

    table.row("statistics", _milliseconds(counted))
    table.row("safetensors", _milliseconds(lambda: write_latents(sample.latents)))
    table.row("JSON of the draws", _milliseconds(lambda: to_json(sample.drawn)))
    hashing = _milliseconds(lambda: [hashlib.sha256(data) for data in content])
    table.row("SHA-256", hashing)
    with path.open("xb") as stream:
        writer = ShardWriter(stream)
        table.row("tar and file", _milliseconds(lambda: writer.add(stored)) - hashing)


if __name__ == "__main__":
    main()
