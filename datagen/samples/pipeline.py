"""Runs `augmentation.pipeline`, a pipeline of albumentations, on the HQ of a sample.

Its draws come from (recipe seed, key), apart from those of the crop and the degradation. Only
transforms of albumentations and FlowMapDegradation are built, never what else a file may name.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import cv2
import numpy as np

from datagen.errors import FlowmapsrError, first_line
from datagen.samples.buckets import Bucket, budget_buckets
from datagen.settings import BucketSettings

_FIELD = "augmentation.pipeline"
_TRIALS = 24
_LARGEST_ARRAY = 256
"""Longer arrays of a replay, such as the noise of each pixel, are stored as their hash."""
_FAULTS = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError),
    *(OSError, cv2.error),
)
"""What transforms raise that are given wrong settings or an image that they cannot work on."""


def augmented(
    content: dict[str, Any], hq: np.ndarray, *, seed: int, key: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """HQ of the same shape, uint8 (H, W, 3), and what was drawn, as JSON.

    The latter is what `albumentations.ReplayCompose.replay` takes; the same seed and key draw it
    again.

    Raises:
        FlowmapsrError: the pipeline fails, or makes an image of another size or type of it.
    """
    pipeline = _built(content)
    draws = int.from_bytes(hashlib.sha256(f"pipeline {seed} {key}".encode()).digest(), "big")
    pipeline.set_random_state(np.random.default_rng(draws), random.Random(draws))
    try:
        made = pipeline(image=hq.copy())
        replay = _as_json(made["replay"])
    except _FAULTS as error:
        what = f"fails on an image {_size(hq)}: {first_line(error)}"
        raise FlowmapsrError(f"{_FIELD}: {what}; change or leave out that transform") from error
    image = made["image"]
    if not isinstance(image, np.ndarray) or (image.shape, image.dtype) != (hq.shape, hq.dtype):
        found = f"{_size(image)} of {image.dtype}" if hasattr(image, "dtype") else type(image)
        raise FlowmapsrError(
            f"{_FIELD}: makes {found} of an image {_size(hq)} of {hq.dtype}; leave out what "
            "changes the size or the type, or end with a transform that puts it back"
        )
    return np.ascontiguousarray(image), replay


def check_pipeline(content: dict[str, Any], settings: BucketSettings) -> None:
    """Tries the pipeline on images of the buckets' sizes, with the probabilities of its transforms
    and with all of them at once.

    Raises:
        FlowmapsrError: it cannot be built or stored, its result has another size or type, or not
            the seed decides it.
    """
    variants = (content, {"transform": _always(content["transform"])})
    rng = np.random.default_rng(0)
    for trial, bucket in enumerate(islice(cycle(_sizes(settings)), _TRIALS)):
        image = rng.integers(0, 256, (bucket.height, bucket.width, 3), dtype=np.uint8)
        for variant in variants:
            first, again = (augmented(variant, image, seed=0, key=str(trial)) for _ in range(2))
            if not np.array_equal(first[0], again[0]) or first[1] != again[1]:
                raise FlowmapsrError(
                    f"{_FIELD}: gives another image with the same seed; leave out the transform "
                    "that draws from elsewhere"
                )


def _sizes(settings: BucketSettings) -> list[Bucket]:
    """The buckets, those of different shapes first."""
    found = {
        bucket
        for budget in settings.budgets
        for bucket in budget_buckets(
            budget.side, step=settings.step, max_aspect_ratio=settings.max_aspect_ratio
        )
    }
    ordered = sorted(found)
    return [ordered[0], ordered[-1], *ordered[1:-1]] if len(ordered) > 1 else ordered


def _built(content: dict[str, Any]) -> Any:
    """A ReplayCompose; one for each image, as transforms keep what they drew."""
    # Without this, importing albumentations asks the network for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    from albumentations.core import serialization

    from datagen.degradation.transform import FlowMapDegradation

    for name in _names(content["transform"]):
        short = serialization.shorten_class_name(name)
        if short in serialization.NON_SERIALIZABLE_REGISTRY:
            raise FlowmapsrError(
                f"{_FIELD}: {name} cannot be serialized; leave it out, or do its work in a "
                "transform that can"
            )
        found = serialization.SERIALIZABLE_REGISTRY.get(short)
        ours = found is FlowMapDegradation
        if found is None or not (ours or found.__module__.startswith("albumentations.")):
            raise FlowmapsrError(
                f"{_FIELD}: {name} is no transform of albumentations {albumentations.__version__}; "
                "use its transforms and FlowMapDegradation only"
            )
    try:
        loaded = albumentations.from_dict(content)
        return albumentations.ReplayCompose([loaded])
    except _FAULTS as error:
        fault = " ".join(str(error).split())
        raise FlowmapsrError(f"{_FIELD}: albumentations cannot load it: {fault}") from error


def _names(transform: Any) -> Iterator[str]:
    """The class of each transform, at any depth."""
    if isinstance(transform, dict):
        if "__class_fullname__" in transform:
            yield str(transform["__class_fullname__"])
        transform = list(transform.values())
    if isinstance(transform, list):
        for item in transform:
            yield from _names(item)


def _always(transform: dict[str, Any]) -> dict[str, Any]:
    """The same with each probability that is not 0 made 1."""
    inner = [_always(one) for one in transform.get("transforms", [])]
    certain = {"p": 1.0} if transform.get("p", 1) else {}
    return {**transform, **certain, **({"transforms": inner} if "transforms" in transform else {})}


def _as_json(value: Any) -> Any:
    """What JSON can hold of a replay; raises TypeError for other things."""
    match value:
        case None | bool() | str() | int() | float():
            return value
        case np.generic():
            return value.item()
        case np.ndarray() if value.size > _LARGEST_ARRAY:
            digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}
        case np.ndarray():
            return value.tolist()
        case dict():
            return {str(name): _as_json(item) for name, item in value.items()}
        case list() | tuple():
            return [_as_json(item) for item in value]
    raise TypeError(f"its replay cannot be stored: it holds a {type(value).__name__}")


def _size(image: Any) -> str:
    return "x".join(map(str, image.shape))
