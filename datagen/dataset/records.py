"""Records of a dataset: what was drawn for a sample, what a shard contains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from datagen.degradation.parameters import DegradationParams
from datagen.photos.source_file import kind_of
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


class Registration(FrozenModel):
    """A point of the LQ, from its center, times `scale` plus the shift is the same point of the
    HQ, from its center."""

    scale: float
    """HQ pixels of one LQ pixel."""
    shift_x: float
    """HQ pixels, to the right."""
    shift_y: float
    """HQ pixels, downwards."""
    offset: float
    """HQ pixels by which the worst corner is off the place that the sizes alone give it."""
    similarity: float
    """Correlation of the detail of the registered pictures: 1 if they are equal."""


class RealLq(FrozenModel):
    """The other half of a real pair: the file of the LQ, and how it lies on the HQ."""

    source: str
    sha256: str
    registration: Registration


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
    lq: DegradationParams | None
    """None where the LQ is a real one."""
    neg: DegradationParams
    replay: dict[str, Any] | None = Field(None, exclude_if=lambda replay: replay is None)
    """What `augmentation.pipeline` drew, as `albumentations.ReplayCompose` tells it."""
    real_lq: RealLq | None = Field(None, exclude_if=lambda real: real is None)
    """Instead of `lq`, of a pair."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.lq is None) == (self.real_lq is None):
            raise ValueError("an LQ is either degraded or real")
        return self


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
    """By kind of reason: without the number that may be in one."""

    @classmethod
    def of(cls, reasons: Iterable[str]) -> RejectedCount:
        counts = Counter(map(kind_of, reasons))
        return cls(count=counts.total(), by_reason=dict(sorted(counts.items())))
