"""Turns a stored sample back into pictures, for the eye."""

from __future__ import annotations

import numpy as np

from datagen.dataset.records import DrawnSample
from datagen.dataset.shards import ShardSample, stored_latents
from datagen.degradation.noise import rounded
from datagen.errors import FlowmapsrError
from datagen.samples.codecs import Codec, decode_latents
from datagen.samples.pixels import decode_pixels, lq_at_hq_size
from datagen.settings import LATENT_NAMES, DatasetRecipe

Pictures = dict[str, np.ndarray]
"""uint8 (H, W, 3) by name: those of `hq`, `lq` and `neg` that are stored, in this order."""


def stored_pictures(
    sample: ShardSample, drawn: DrawnSample, recipe: DatasetRecipe, codec: Codec | None
) -> Pictures:
    """What the latents decode to; the stored pixels where there is no latent.

    Raises:
        FlowmapsrError: a member cannot be decoded.
    """
    latents = stored_latents(sample)
    found = decode_latents(codec, latents) if codec is not None and latents else {}
    if "hq" not in found and sample.hq_image is not None:
        found["hq"] = _pixels(sample.hq_image)
    if "lq" not in found and sample.lq_image is not None:
        lq = lq_at_hq_size(_pixels(sample.lq_image), drawn, recipe.lq_pixels)
        found["lq"] = rounded(lq * np.float32(255))
    return {name: found[name] for name in LATENT_NAMES if name in found}


def _pixels(data: bytes) -> np.ndarray:
    pixels = decode_pixels(data)
    if pixels is None:
        raise FlowmapsrError("stored pixels cannot be decoded")
    return pixels
