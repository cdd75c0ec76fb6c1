"""Decodes and checks samples' bytes into the tensors of a micro batch.

Latents stay float16, as stored, and are copied into the batch while the bytes just read are still
in the processor's cache.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from datagen.dataset.shard_index import SampleBytes


class DamagedSample(Exception):
    """A sample that cannot be trained on, with the reason."""


@dataclass(frozen=True)
class SampleShape:
    """Shapes of one bucket's latents and pixels."""

    latents: tuple[int, int, int]
    """(C, h, w)"""
    pixels: tuple[int, int]
    """(H, W)"""


@dataclass(frozen=True)
class BatchFields:
    """What a batch has besides hq and lq."""

    neg: bool
    pixels: bool


def holds(sample: SampleBytes) -> BatchFields:
    """The optional fields that a sample has."""
    return BatchFields(neg="neg" in _layout(sample), pixels=sample.hq_jpeg is not None)


class BatchBuffer:
    """The tensors of a micro batch, filled sample by sample."""

    def __init__(self, samples: int, shape: SampleShape, fields: BatchFields, *, pin: bool) -> None:
        """
        Args:
            pin: use page-locked memory, from which copies to a GPU run in the background.
        """

        def empty(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty((samples, *size), dtype=dtype, pin_memory=pin)

        self._shape = shape
        self.hq = empty(*shape.latents, dtype=torch.float16)
        self.lq = empty(*shape.latents, dtype=torch.float16)
        self.neg = empty(*shape.latents, dtype=torch.float16) if fields.neg else None
        self.pixels = empty(3, *shape.pixels, dtype=torch.uint8) if fields.pixels else None
        latents = {"hq": self.hq, "lq": self.lq, "neg": self.neg}
        self._latents = {name: x.numpy() for name, x in latents.items() if x is not None}
        self._pixels = None if self.pixels is None else self.pixels.numpy()

    def put(self, row: int, sample: SampleBytes) -> None:
        """Copies a sample's fields into a row.

        Raises:
            DamagedSample: a field is missing, has another shape, is not finite, or is no JPEG; fill
                the row again then.
        """
        layout = _layout(sample)
        for name, rows in self._latents.items():
            rows[row] = _latent(sample, name, layout.get(name), self._shape)
        if self._pixels is not None:
            self._pixels[row] = _pixels(sample, self._shape).transpose(2, 0, 1)


@dataclass(frozen=True)
class _StoredTensor:
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in the safetensors file, bytes."""


def _layout(sample: SampleBytes) -> dict[str, _StoredTensor]:
    """The tensors by name. A safetensors file starts with the length of a JSON header."""
    length = int.from_bytes(sample.latents[:8], "little")
    return _parsed(bytes(sample.latents[8 : 8 + length]))


@lru_cache(maxsize=256)  # all samples of a bucket have the same header
def _parsed(header: bytes) -> dict[str, _StoredTensor]:
    try:
        stored = json.loads(header)
        stored.pop("__metadata__", None)
        start = 8 + len(header)
        return {
            name: _StoredTensor(one["dtype"], tuple(one["shape"]), start + one["data_offsets"][0])
            for name, one in stored.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedSample(f"its latents are not a safetensors file ({error})") from error


def _latent(
    sample: SampleBytes, name: str, found: _StoredTensor | None, shape: SampleShape
) -> np.ndarray:
    if found is None:
        raise DamagedSample(f"it has no tensor {name}")
    if found.dtype != "F16" or found.shape != shape.latents:
        raise DamagedSample(
            f"{name} is {found.dtype} {list(found.shape)}, and its bucket's latents are "
            f"F16 {list(shape.latents)}"
        )
    end = found.start + 2 * math.prod(shape.latents)
    if end > len(sample.latents):
        raise DamagedSample(f"{name} is cut off")
    values = np.frombuffer(sample.latents[found.start : end], np.float16)
    # As integers, infinities and NaN are the largest of their sign; far faster than isfinite.
    if values.view(np.int16).max() >= 0x7C00 or values.view(np.uint16).max() >= 0xFC00:
        raise DamagedSample(f"{name} holds values that are not finite")
    return values.reshape(shape.latents)


def _pixels(sample: SampleBytes, shape: SampleShape) -> np.ndarray:
    if sample.hq_jpeg is None:
        raise DamagedSample("it has no hq.jpg")
    rgb = cv2.imdecode(np.frombuffer(sample.hq_jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    if rgb is None:
        raise DamagedSample("hq.jpg cannot be decoded")
    if rgb.shape != (*shape.pixels, 3):
        raise DamagedSample(f"hq.jpg is {rgb.shape[0]}x{rgb.shape[1]} pixels, not its bucket's")
    return rgb
