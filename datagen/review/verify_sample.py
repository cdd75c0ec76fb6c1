"""What is wrong with one stored sample, by its recipe and by the record of its shard."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import ValidationError

from datagen.dataset.records import CodecRecord, DrawnSample, ShardRecord
from datagen.dataset.shards import (
    HQ_JPEG,
    HQ_PNG,
    LATENTS,
    LQ_PNG,
    META,
    ShardSample,
    stored_latents,
)
from datagen.degradation.apply import small_size
from datagen.errors import FlowmapsrError
from datagen.samples.buckets import Bucket
from datagen.samples.pixels import decode_pixels
from datagen.settings import DatasetRecipe


def sample_issues(
    recipe: DatasetRecipe, codec: CodecRecord | None, record: ShardRecord, sample: ShardSample
) -> Iterator[str]:
    """How the sample differs from what the recipe and the shard's record say."""
    try:
        drawn = DrawnSample.model_validate_json(sample.meta)
    except ValidationError as error:
        yield f"{META} is malformed ({error.error_count()} issues)"
        return
    if drawn.key != sample.key:
        yield f"{META} says key {drawn.key}"
    if drawn.bucket != record.bucket:
        yield f"{META} says bucket {drawn.bucket}"
    yield from _member_issues(recipe, sample)
    bucket = Bucket.from_name(record.bucket)
    yield from _latent_issues(recipe, codec, bucket, sample)
    full = bucket.width, bucket.height
    if sample.hq_image is not None:
        yield from _pixel_issues("HQ pixels", sample.hq_image, full)
    if sample.lq_image is not None and recipe.lq_pixels != "none":
        size = full if recipe.lq_pixels == "full" else small_size(full, drawn.scale)
        yield from _pixel_issues("LQ pixels", sample.lq_image, size)


def _member_issues(recipe: DatasetRecipe, sample: ShardSample) -> Iterator[str]:
    hq = {"jpeg": {HQ_JPEG}, "png": {HQ_PNG}, "none": set[str]()}[recipe.hq_pixels]
    asked = {META, *hq, *([LATENTS] if recipe.latents else [])}
    asked |= {LQ_PNG} if recipe.lq_pixels != "none" else set()
    found = sample.members().keys()
    for name in sorted(asked ^ found):
        yield f"{name} {'missing' if name in asked else 'not asked for by the recipe'}"


def _latent_issues(
    recipe: DatasetRecipe, codec: CodecRecord | None, bucket: Bucket, sample: ShardSample
) -> Iterator[str]:
    if sample.latents is None or codec is None:
        return
    try:
        latents = stored_latents(sample)
    except FlowmapsrError as error:
        yield str(error)
        return
    shape = (codec.channels, bucket.height // codec.downsample, bucket.width // codec.downsample)
    if tuple(latents) != recipe.latents:
        names, asked = ", ".join(latents), ", ".join(recipe.latents)
        yield f"{LATENTS} holds {names}, the recipe asks for {asked}"
    for name, latent in latents.items():
        if latent.shape != shape or latent.dtype != np.float16:
            yield f"latent {name} is {latent.dtype} {latent.shape}, not float16 {shape}"
        elif not np.isfinite(latent).all():
            yield f"latent {name} is not finite"


def _pixel_issues(what: str, data: bytes, size: tuple[int, int]) -> Iterator[str]:
    pixels = decode_pixels(data)
    if pixels is None:
        yield f"{what} are no image"
    elif pixels.shape != (size[1], size[0], 3):
        yield f"{what} are {pixels.shape[1]}x{pixels.shape[0]}, not {size[0]}x{size[1]}"
