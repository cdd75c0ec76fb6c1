"""Encodes the two prompts with the CLIP text encoders of an SDXL-like checkpoint.

Computed once per run: the run folder's `prompts.safetensors` is reused. Reads safetensors only,
never a pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datagen.errors import FlowmapsrError, first_line
from training.flowmap.prompts import PROMPTS_FILE, Prompts, read_prompts, write_prompts
from training.settings.model import TextEncoderPrompts

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def encode_once(run: Path, settings: TextEncoderPrompts, *, channels: int) -> Prompts:
    """The run's prompts, encoded if the run folder does not have them yet.

    Args:
        channels: `model.prompt_channels`, the network's width.

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
    from transformers import (
        AutoConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder=TOKENIZERS[encoder])
        config = AutoConfig.from_pretrained(source, subfolder=encoder)
        projects = "CLIPTextModelWithProjection" in (config.architectures or ())
        kind = CLIPTextModelWithProjection if projects else CLIPTextModel
        model = kind.from_pretrained(
            source, subfolder=encoder, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise FlowmapsrError(
            f"prompts.source: {source} has no text encoder {encoder!r} with its tokenizer "
            f"{TOKENIZERS[encoder]!r} ({first_line(error)}); give the hub id or folder of an "
            "SDXL-like checkpoint with safetensors files (a folder starts with '/', '.' or '~'), "
            "or remove prompts"
        ) from error
    return tokenizer, model.eval()
