"""The two prompt embeddings of FlowMapSR, positive (c+) and negative (c-), that condition the
model, and the `prompts.safetensors` that keeps them.

They are made by the CLIP text encoders of an SDXL-like checkpoint, once per run. Without one they
are two fixed random directions, which serve a model trained from scratch just as well, because only
these two conditions exist. Only safetensors are read, never a pickle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError, first_line
from datagen.io import storage
from datagen.io.weight_files import checked_variant
from datagen.samples.weights import check_finite, read_weights
from training.settings.model import NEGATIVE_PROMPT, POSITIVE_PROMPT, TextEncoderPrompts

POSITIVE = 0
NEGATIVE = 1
PROMPTS = (POSITIVE_PROMPT, NEGATIVE_PROMPT)
STAND_IN = "sha256-normal-v1"
"""Name written to the model's config when no text encoder made the embeddings."""
PROMPTS_FILE = "prompts.safetensors"
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


@dataclass(frozen=True)
class Prompts:
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
    """Writes `prompts.safetensors`. Raises `FlowmapsrError` when it cannot be written."""
    positive, negative = prompts.texts
    metadata = {"made_by": prompts.made_by, "positive": positive, "negative": negative}
    tensors = {"embeddings": prompts.embeddings.detach().cpu().float().contiguous()}
    storage.write_bytes(str(path), safetensors.torch.save(tensors, metadata))


def read_prompts(path: Path) -> Prompts:
    """Raises `FlowmapsrError` when there is no such file, or it holds something else."""
    try:
        embeddings = read_weights(path)["embeddings"]
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            texts = (metadata["positive"], metadata["negative"])
            return Prompts(metadata["made_by"], texts, embeddings)
    except (KeyError, FlowmapsrError) as error:
        raise FlowmapsrError(f"{path} does not hold prompt embeddings: {error}") from error


def encode_once(run: Path, settings: TextEncoderPrompts, *, channels: int) -> Prompts:
    """The run's prompts (2, channels), encoded if the run folder does not have them yet.

    Raises:
        FlowmapsrError: no such encoders, or their embeddings have another width.
    """
    path = run / PROMPTS_FILE
    if not path.is_file():
        run.mkdir(parents=True, exist_ok=True)
        write_prompts(path, encode_prompts(settings))
    prompts = read_prompts(path)
    width = prompts.embeddings.shape[1]
    if width != channels:
        raise FlowmapsrError(
            f"the text encoders of {settings.source} make prompt embeddings of width {width}, "
            f"but the network takes {channels}: set model.prompt_channels={width}"
        )
    return prompts


@torch.no_grad()
def encode_prompts(settings: TextEncoderPrompts) -> Prompts:
    """Both prompts' pooled embeddings, concatenated over the encoders."""
    texts = (settings.positive, settings.negative)
    pooled = [_pooled(settings.source, name, texts) for name in settings.encoders]
    made_by = f"{settings.source} {'+'.join(settings.encoders)}"
    return Prompts(made_by, texts, torch.cat(pooled, dim=1).float())


def _pooled(source: str, encoder: str, texts: tuple[str, str]) -> Tensor:
    tokenizer, model = _load(source, encoder)
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    output = model(tokens.input_ids)
    # An encoder with a projection has `text_embeds`, SDXL's pooled embedding.
    return output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output


def _load(source: str, encoder: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    try:
        variant = checked_variant(Path(source, encoder), "model")
        # `source` names what the user trusts, and safetensors run no code.
        folder = TOKENIZERS[encoder]
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder=folder)  # nosec B615
        config = AutoConfig.from_pretrained(source, subfolder=encoder)  # nosec B615
        projects = "CLIPTextModelWithProjection" in (config.architectures or ())
        kind = CLIPTextModelWithProjection if projects else CLIPTextModel
        model, loaded = kind.from_pretrained(
            source,
            subfolder=encoder,
            use_safetensors=True,
            variant=variant,
            dtype=torch.float32,
            output_loading_info=True,
        )
        missing = sorted(loaded["missing_keys"])
        if missing:  # transformers only warns, and draws random ones
            raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
        check_finite(model.state_dict(), source)
    except (OSError, ValueError, FlowmapsrError) as error:
        raise FlowmapsrError(
            f"prompts.source: {source} has no text encoder {encoder!r} with its tokenizer "
            f"{TOKENIZERS[encoder]!r} ({first_line(error)}); give the hub id or folder of an "
            "SDXL-like checkpoint with safetensors files (a folder starts with '/', '.' or '~'), "
            "or remove prompts"
        ) from error
    return tokenizer, model.eval()
