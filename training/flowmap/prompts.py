"""The two prompt embeddings of FlowMapSR, positive (c+) and negative (c-), that condition the
model, and the `prompts.safetensors` that keeps them.

Without a text encoder they are a named deterministic stand-in: two fixed random
directions, which serve a model trained from scratch just as well, because only these two conditions
exist.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io import storage
from training.settings.model import NEGATIVE_PROMPT, POSITIVE_PROMPT

POSITIVE = 0
NEGATIVE = 1
PROMPTS = (POSITIVE_PROMPT, NEGATIVE_PROMPT)
STAND_IN = "sha256-normal-v1"
"""Name written to the model's config when no text encoder made the embeddings."""
PROMPTS_FILE = "prompts.safetensors"


@dataclass(frozen=True)
class Prompts:
    """Both prompts and their embeddings."""

    made_by: str
    """The text encoders, or STAND_IN."""
    texts: tuple[str, str]
    """c+ and c-."""
    embeddings: Tensor
    """(2, channels) float32 in the order of `texts`."""


def stand_in_embeddings(channels: int) -> Tensor:
    """Two standard normal vectors (2, channels), float32, seeded by the SHA-256 of each prompt."""
    rows = []
    for prompt in PROMPTS:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "little")
        rows.append(np.random.Generator(np.random.PCG64(seed)).standard_normal(channels))
    return torch.from_numpy(np.stack(rows)).float()


def stand_in(channels: int) -> Prompts:
    return Prompts(STAND_IN, PROMPTS, stand_in_embeddings(channels))


def write_prompts(path: Path, prompts: Prompts) -> None:
    """Writes `prompts.safetensors` completely or not at all.

    Raises:
        FlowmapsrError: it cannot be written.
    """
    positive, negative = prompts.texts
    metadata = {"made_by": prompts.made_by, "positive": positive, "negative": negative}
    tensors = {"embeddings": prompts.embeddings.detach().cpu().float().contiguous()}
    storage.write_bytes(str(path), safetensors.torch.save(tensors, metadata))


def read_prompts(path: Path) -> Prompts:
    """Reads what `write_prompts` wrote.

    Raises:
        FlowmapsrError: there is no such file, or it holds something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            texts = (metadata["positive"], metadata["negative"])
            return Prompts(metadata["made_by"], texts, file.get_tensor("embeddings"))
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise FlowmapsrError(f"{path} does not hold prompt embeddings: {error}") from error
