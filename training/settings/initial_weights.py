"""Where a stage's first weights come from, as written in a recipe. Opens nothing."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from datagen.records import located

STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
REGISTRY = "models:/"
PUBLIC = "elir:"
"""Begins the names of published weights."""
PUBLISHED = ("bfr", "sr", "denoising", "inpainting", "bsr")
_MODEL_VERSION = re.compile(r"models:/[^/@]+/\d+")


def is_registry(text: str) -> bool:
    return text.startswith(REGISTRY)


def is_public(text: str) -> bool:
    """Whether these are the published weights of ELIR for a task."""
    return text.startswith(PUBLIC)


def is_stage(text: str) -> bool:
    """Whether this is a stage's name: a folder is written with a slash."""
    return STAGE_NAME.fullmatch(text) is not None


def is_local_path(text: str) -> bool:
    """Whether this is a local folder or file."""
    return "://" not in text and not is_registry(text) and _looks_like_path(text)


def _looks_like_path(text: str) -> bool:
    return "/" in text or text.endswith(".safetensors")


def _checked(text: str, info: ValidationInfo) -> str:
    if is_registry(text):
        if not _MODEL_VERSION.fullmatch(text):
            raise ValueError(
                "write models:/NAME/VERSION with the version's number: an alias or a stage may "
                "come to mean another model before the run has ended"
            )
    elif is_public(text):
        if text.removeprefix(PUBLIC) not in PUBLISHED:
            raise ValueError(f"write one of {', '.join(PUBLIC + name for name in PUBLISHED)}")
    elif "://" in text:
        raise ValueError("give a local path, models:/NAME/VERSION or the name of a stage")
    elif not is_stage(text) and not _looks_like_path(text):
        raise ValueError(
            "give the name of an earlier stage (a-z, 0-9, '-', '_'), a run or model folder "
            "(written with a slash), a .safetensors file or models:/NAME/VERSION"
        )
    return located(text, info) if is_local_path(text) else text


InitialWeights = Annotated[str, AfterValidator(_checked)]
"""The name of an earlier stage; a run folder, model folder, diffusers folder or `.safetensors`
file (with a slash or that ending); `models:/NAME/VERSION` of MLflow's registry; or `elir:TASK`."""
