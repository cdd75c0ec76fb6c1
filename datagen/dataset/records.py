"""Records of a dataset: what was drawn for a sample, what a shard contains."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from datagen.degradation.parameters import DegradationParams
from datagen.records import FrozenModel

Split = Literal["train", "validation"]


class Crop(FrozenModel):
    """The part of the upright photo that becomes the sample, pixels."""

    left: int
    top: int
    width: int
    height: int


class Orientation(FrozenModel):
    """Geometric augmentation: quarter turns counter-clockwise, then a horizontal flip."""

    quarter_turns: int
    flip: bool


class DrawnSample(FrozenModel):
    """Everything that decides a sample's pixels: the content of its `meta.json`."""

    key: str
    source: str
    seed: int
    bucket: str
    crop: Crop
    orientation: Orientation
    scale: float
    """Of the LQ; that of the negative is in `neg`."""
    lq: DegradationParams
    neg: DegradationParams
    replay: dict[str, Any] | None = Field(None, exclude_if=lambda replay: replay is None)
    """What `augmentation.pipeline` drew, as `albumentations.ReplayCompose` tells it."""


class ShardRecord(FrozenModel):
    """One committed shard; `path` is relative to the dataset."""

    path: str
    sha256: str
    bytes: int
    num_samples: int
    bucket: str
    split: Split


class CodecRecord(FrozenModel):
    """What made the latents."""

    kind: str
    fingerprint: str
    channels: int
    downsample: int


class RejectedCount(FrozenModel):
    count: int
    by_reason: dict[str, int]
