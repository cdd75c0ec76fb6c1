"""Turns one stored sample into the list of what is wrong with it: shapes, numbers, pictures, draws.

Knows the members of a sample, not where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from pydantic import ValidationError

from datagen.dataset.manifest import Manifest
from datagen.dataset.records import DrawnSample, ShardRecord
from datagen.dataset.shards import HQ_IMAGE, META, Latents, ShardSample
from datagen.errors import FlowmapsrError
from datagen.samples.buckets import Bucket


def sample_faults(manifest: Manifest, record: ShardRecord, sample: ShardSample) -> Iterator[str]:
    """What the sample lacks of what manifest and shard record promise."""
    bucket = Bucket.from_name(record.bucket)
    shrink = manifest.codec.downsample
    shape = (manifest.codec.channels, bucket.height // shrink, bucket.width // shrink)
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
    if drawn.key != sample.key:
        yield f"{META} says key {drawn.key}"
    if drawn.bucket != record.bucket:
        yield f"{META} says bucket {drawn.bucket}"
    yield from _hq_faults(manifest, sample, bucket)


def _hq_faults(manifest: Manifest, sample: ShardSample, bucket: Bucket) -> Iterator[str]:
    expected = manifest.recipe["hq_jpeg_quality"] is not None
    if expected != (sample.hq_jpeg is not None):
        yield f"{HQ_IMAGE} {'missing' if expected else 'not asked for by the recipe'}"
    elif sample.hq_jpeg is not None:
        image = cv2.imdecode(np.frombuffer(sample.hq_jpeg, np.uint8), cv2.IMREAD_COLOR)
        if image is None or image.shape[:2] != (bucket.height, bucket.width):
            yield f"{HQ_IMAGE} is no JPEG of {bucket.name}"
