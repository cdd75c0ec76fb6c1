"""Turns stored latents back into pictures through the codec that made them.

Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datagen.dataset.shards import Latents
from datagen.samples.codecs import Codec


@dataclass(frozen=True)
class DecodedSample:
    """uint8 (H, W, 3) each."""

    hq: np.ndarray
    lq: np.ndarray
    neg: np.ndarray


def decode_latents(codec: Codec, latents: Latents) -> DecodedSample:
    """The pictures that the latents of a sample stand for."""
    stacked = np.stack([latents.hq, latents.lq, latents.neg]).astype(np.float32)
    with torch.no_grad():
        images = codec.decode(torch.from_numpy(stacked)).clamp(-1, 1)
    levels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return DecodedSample(hq=levels[0], lq=levels[1], neg=levels[2])
