"""The two prompt embeddings of FlowMapSR, positive (c+) and negative (c-), that condition the
model.

Where no text encoder is at hand they are a named deterministic stand-in: two fixed random
directions, which serve a model trained from scratch just as well, because only these two conditions
exist.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

POSITIVE = 0
NEGATIVE = 1
PROMPTS = (
    "a high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and "
    "natural lighting",
    "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, "
    "oversmooth",
)
STAND_IN = "sha256-normal-v1"
"""Name written to the model's config when no text encoder made the embeddings."""


def stand_in_embeddings(channels: int) -> Tensor:
    """Two standard normal vectors (2, channels), float32, seeded by the SHA-256 of each prompt."""
    rows = []
    for prompt in PROMPTS:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "little")
        rows.append(np.random.Generator(np.random.PCG64(seed)).standard_normal(channels))
    return torch.from_numpy(np.stack(rows)).float()
