"""Reads a pipeline that albumentations saved as JSON or YAML, without building its transforms.

A recipe holds what the file says, not its name: a dataset can be made again where the file is not.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from datagen.errors import FlowmapsrError, first_line
from datagen.io import storage
from datagen.records import absolute

_HOW = "save the pipeline with albumentations.save(pipeline, FILE)"


def pipeline_content(given: Any) -> Any:
    """`{"transform": ...}` of a file's address, or of such content itself.

    Raises:
        ValueError: there is no such file, or it holds no pipeline.
    """
    content = _read(given) if isinstance(given, str) else given
    if content is None and given is None:
        return None
    transform = content.get("transform") if isinstance(content, dict) else None
    if not isinstance(transform, dict) or "__class_fullname__" not in transform:
        raise ValueError(f"no pipeline of albumentations; {_HOW}")
    try:
        # Not the version that wrote it: saved again by another one, it is the same pipeline.
        return json.loads(json.dumps({"transform": transform}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a value in the pipeline is none of JSON's ({error}); {_HOW}") from error


def _read(location: str) -> Any:
    try:
        text = storage.read_bytes(absolute(location)).decode()
    except FlowmapsrError as error:
        raise ValueError(first_line(error)) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{location} is no text; {_HOW}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass  # YAML then, whose parser reads JSON's 1e-3 as a word
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{location} is neither JSON nor YAML; {_HOW}") from error
