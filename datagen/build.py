"""Turns a recipe into a finished dataset: plan, build each shard, finish. Every step can be rerun.

`ShardBuilder(recipe)(task)` is a plain picklable callable that does not know who calls it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import cv2
import numpy as np
import torch

from datagen import storage
from datagen.codecs import Codec, load_codec
from datagen.errors import FlowmapsrError
from datagen.images import ImageRejected, check_pixels, decode_photo
from datagen.manifest import (
    MANIFEST,
    CodecRecord,
    Manifest,
    ShardRecord,
    load_manifest,
    parse,
    to_json,
)
from datagen.plan import (
    PLAN,
    Plan,
    ShardTask,
    committed_record,
    make_plan,
    pending_tasks,
    plan_dataset,
)
from datagen.preview import PreviewRow, draw_preview
from datagen.samples import DrawnSample, SamplePixels, draw_sample, make_pixels
from datagen.settings import DatasetRecipe
from datagen.shards import Latents, ShardSample, read_shard, write_shard
from datagen.sources import Rejection, SourceImage
from datagen.summary import ShardSummary, Tally, rejected_count, statistics

REJECTED = "rejected.jsonl"
SOURCES = "sources.jsonl"
PREVIEW = "preview.png"
_PREVIEW_SAMPLES = 6
_FLOAT16_MAX = 65504

R = TypeVar("R", Rejection, SourceImage)


class ShardBuilder:
    """Makes shards of one recipe; the codec is loaded at the first task and then kept."""

    def __init__(self, recipe: DatasetRecipe, device: str = "cpu") -> None:
        self._recipe = recipe
        self._device = device
        self._codec: Codec | None = None
        self._photo: tuple[str, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_recipe": self._recipe, "_device": self._device, "_codec": None, "_photo": None}

    def __call__(self, task: ShardTask) -> ShardRecord:
        """Writes the tar, then its summary, then its record: the commit.

        Photos that cannot be used are left out and named in the summary. Raises FlowmapsrError when
        a photo is not the one that was planned, or the output cannot be written.
        """
        codec = self._loaded_codec()
        tally = Tally(codec_record(self._recipe, codec))
        output = self._recipe.output
        with _one_core():
            samples = self._samples(task, codec, tally)
            written = write_shard(storage.join(output, task.path), samples)
        record = ShardRecord(
            path=task.path,
            sha256=written.sha256,
            bytes=written.bytes,
            num_samples=written.num_samples,
            bucket=task.bucket,
            split=task.split,
        )
        storage.write_bytes(storage.join(output, task.summary_path), to_json(tally.summary()))
        storage.write_bytes(storage.join(output, task.record_path), to_json(record))
        return record

    def _loaded_codec(self) -> Codec:
        if self._codec is None:
            self._codec = load_codec(self._recipe.codec, self._device)
        return self._codec

    def _samples(self, task: ShardTask, codec: Codec, tally: Tally) -> Iterator[ShardSample]:
        for sample in task.samples:
            try:
                drawn = draw_sample(self._recipe, sample.source, sample.variant)
                pixels = make_pixels(self._decoded(sample.source), drawn)
                latents = _encode(codec, pixels, self._device)
            except ImageRejected as error:
                tally.reject(Rejection(uri=sample.source.uri, reason=error.reason))
                continue
            tally.add(latents.hq, drawn.scale)
            yield ShardSample(
                key=drawn.key,
                latents=latents.to_bytes(),
                meta=to_json(drawn),
                hq_jpeg=_hq_jpeg(pixels.hq, self._recipe.hq_jpeg_quality),
            )

    def _decoded(self, source: SourceImage) -> np.ndarray:
        """The photo's pixels; variants of one photo follow each other and share the work."""
        if self._photo is None or self._photo[0] != source.sha256:
            data = storage.read_bytes(source.uri)
            if hashlib.sha256(data).hexdigest() != source.sha256:
                raise FlowmapsrError(
                    f"{source.uri}: this photo has changed since the build was planned; "
                    "put it back, or give another output"
                )
            pixels = decode_photo(data, self._recipe.images)
            check_pixels(pixels, self._recipe.filters)
            self._photo = source.sha256, pixels
        return self._photo[1]


def codec_record(recipe: DatasetRecipe, codec: Codec) -> CodecRecord:
    return CodecRecord(
        kind=recipe.codec.kind,
        fingerprint=codec.fingerprint,
        channels=codec.channels,
        downsample=codec.downsample,
    )


def completed(recipe: DatasetRecipe) -> Manifest | None:
    """The manifest if the output already holds this recipe's finished dataset of these photos."""
    output = recipe.output
    if not storage.exists(storage.join(output, MANIFEST)):
        return None
    manifest = load_manifest(output)
    if manifest.recipe_digest != recipe.digest() or storage.exists(storage.join(output, PLAN)):
        return None
    plan = make_plan(recipe)
    recorded = {item.uri for item in _read_lines(Rejection, storage.join(output, REJECTED))}
    same_photos = _read_lines(SourceImage, storage.join(output, SOURCES)) == plan.sources()
    if same_photos and recorded >= {item.uri for item in plan.rejected}:
        return manifest
    return None


def build_dataset(recipe: DatasetRecipe) -> Manifest:
    """Builds the whole dataset in this process, or finishes one that was begun."""
    manifest = completed(recipe)
    if manifest is not None:
        return manifest
    plan = plan_dataset(recipe)
    builder = ShardBuilder(recipe)
    limit = RejectionLimit(plan)
    for task in pending_tasks(plan):
        limit.check(task, builder(task))
    return finish(plan)


class RejectionLimit:
    """Stops a build as soon as more photos are left out than its recipe allows."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rejected: set[str] = set()

    def check(self, task: ShardTask, record: ShardRecord) -> None:
        """Counts a finished shard; raises FlowmapsrError past the limit."""
        if record.num_samples == len(task.samples):
            return
        summary = parse(ShardSummary, storage.join(self._plan.output, task.summary_path))
        self._rejected |= {item.uri for item in summary.rejected}
        self._plan.enforce_limit(self._rejected)


def finish(plan: Plan) -> Manifest:
    """Commits the dataset: checks that every shard is there and writes the manifest last.

    Raises FlowmapsrError naming shards that are missing, or when too many photos were left out.
    """
    records = _all_records(plan)
    summaries = [
        parse(ShardSummary, storage.join(plan.output, task.summary_path)) for task in plan.tasks
    ]
    rejected = _all_rejected(plan, summaries)
    plan.enforce_limit({item.uri for item in rejected if item not in plan.rejected})
    shards = tuple(record for record in records if record.num_samples)
    if not shards:
        raise FlowmapsrError(f"{plan.output}: every photo was left out; see {REJECTED}")
    manifest = Manifest(
        recipe=plan.recipe.content(),
        recipe_digest=plan.recipe_digest,
        codec=_one_codec(plan, summaries),
        num_samples=sum(record.num_samples for record in shards),
        num_shards=len(shards),
        bytes=sum(record.bytes for record in shards),
        shards=shards,
        rejected=rejected_count(rejected),
        stats=statistics(summaries, plan.recipe),
    )
    _write_lines(storage.join(plan.output, REJECTED), rejected)
    _write_lines(storage.join(plan.output, SOURCES), plan.sources())
    storage.write_bytes(
        storage.join(plan.output, PREVIEW), draw_preview(_preview_rows(plan, shards))
    )
    storage.write_bytes(storage.join(plan.output, MANIFEST), to_json(manifest))
    _remove_leftovers(plan)
    return manifest


def _all_records(plan: Plan) -> list[ShardRecord]:
    found = [(task, committed_record(plan, task)) for task in plan.tasks]
    missing = [task.path for task, record in found if record is None]
    if missing:
        raise FlowmapsrError(
            f"{plan.output}: {len(missing)} of {len(found)} shards are missing: "
            f"{', '.join(missing)}; run the same command again to build them"
        )
    return [record for _, record in found if record is not None]


def _all_rejected(plan: Plan, summaries: list[ShardSummary]) -> list[Rejection]:
    """Each photo once, in the order of its URI."""
    everything = [*plan.rejected, *(item for summary in summaries for item in summary.rejected)]
    by_uri = {item.uri: item for item in everything}
    return [by_uri[uri] for uri in sorted(by_uri)]


def _one_codec(plan: Plan, summaries: list[ShardSummary]) -> CodecRecord:
    first = summaries[0].codec
    for task, summary in zip(plan.tasks, summaries, strict=True):
        if summary.codec != first:
            raise FlowmapsrError(
                f"{plan.output}: {task.path} was encoded by other codec weights than "
                f"{plan.tasks[0].path}; remove its .json and run the same command again"
            )
    return first


def _remove_leftovers(plan: Plan) -> None:
    """Removes what a finished dataset does not hold; `plan.json` first, it marks an open build."""
    storage.delete(storage.join(plan.output, PLAN))
    for uri in storage.list_files(plan.output):
        if uri.endswith(storage.TEMPORARY_SUFFIX):
            storage.delete(uri)


def _write_lines(uri: str, records: list[Rejection] | list[SourceImage]) -> None:
    storage.write_bytes(uri, b"".join(item.model_dump_json().encode() + b"\n" for item in records))


def _read_lines(record: type[R], uri: str) -> list[R]:
    return [record.model_validate_json(line) for line in storage.read_bytes(uri).splitlines()]


@contextmanager
def _one_core() -> Iterator[None]:
    """Shards are made side by side, one core each: threads inside them would only wait."""
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)


def _encode(codec: Codec, pixels: SamplePixels, device: str) -> Latents:
    """HQ, LQ and negative in one batch; ImageRejected when the latents are not finite."""
    images = np.empty((3, *pixels.hq.shape), np.float32)
    np.multiply(pixels.hq, np.float32(2 / 255), out=images[0], dtype=np.float32)
    np.multiply(pixels.lq, np.float32(2), out=images[1])
    np.multiply(pixels.neg, np.float32(2), out=images[2])
    images -= 1
    latents = codec.encode(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
    low, high = torch.aminmax(latents)
    if not (low >= -_FLOAT16_MAX and high <= _FLOAT16_MAX):  # false for NaN too
        raise ImageRejected("latents not finite")
    hq, lq, neg = latents.to(torch.float16).cpu().contiguous().numpy()
    return Latents(hq=hq, lq=lq, neg=neg)


def _hq_jpeg(hq: np.ndarray, quality: int | None) -> bytes | None:
    if quality is None:
        return None
    bgr = cv2.cvtColor(hq, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()


def _preview_rows(plan: Plan, shards: tuple[ShardRecord, ...]) -> list[PreviewRow]:
    """The first samples of shards spread over the dataset, decoded from what was stored."""
    codec = load_codec(plan.recipe.codec)
    count = min(_PREVIEW_SAMPLES, len(shards))
    chosen = [shards[index * len(shards) // count] for index in range(count)]
    per_shard = -(-_PREVIEW_SAMPLES // count)
    rows: list[PreviewRow] = []
    for shard in chosen:
        for sample in read_shard(storage.join(plan.output, shard.path))[:per_shard]:
            drawn = DrawnSample.model_validate_json(sample.meta)
            latents = Latents.from_bytes(sample.latents)
            stacked = np.stack([latents.hq, latents.lq, latents.neg]).astype(np.float32)
            with torch.no_grad():
                images = codec.decode(torch.from_numpy(stacked)).clamp(-1, 1)
            levels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            rows.append(PreviewRow(drawn=drawn, hq=levels[0], lq=levels[1], neg=levels[2]))
    return rows[:_PREVIEW_SAMPLES]
