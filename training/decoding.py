"""The bytes of samples, each checked, to the tensors of a micro batch.

Latents stay float16, as they are stored, and are copied into the batch while the bytes that were
just read are still near the processor. Knows no shards and no order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from datagen.shard_index import SampleBytes

_EXPONENT = np.uint16(0x7C00)
"""All ones in a float16 that is infinite or not a number."""


class DamagedSample(Exception):
    """A sample that cannot be trained on, and why."""


@dataclass(frozen=True)
class SampleShape:
    """What the latents and the pixels of one bucket look like."""

    latents: tuple[int, int, int]
    """(C, h, w)"""
    pixels: tuple[int, int]
    """(H, W)"""


@dataclass(frozen=True)
class Wanted:
    """What a batch must hold beside hq and lq."""

    neg: bool
    pixels: bool


def holds(sample: SampleBytes) -> Wanted:
    """What there is of what may be wanted."""
    names = {tensor.name for tensor in _layout(_header(sample))}
    return Wanted(neg="neg" in names, pixels=sample.hq_jpeg is not None)


class BatchMemory:
    """The tensors of a micro batch, to be filled sample by sample."""

    def __init__(self, samples: int, shape: SampleShape, wanted: Wanted, *, pin: bool) -> None:
        """
        Args:
            pin: take page-locked memory, from where a GPU copies while others work.
        """

        def empty(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty((samples, *size), dtype=dtype, pin_memory=pin)

        self._shape = shape
        self.hq = empty(*shape.latents, dtype=torch.float16)
        self.lq = empty(*shape.latents, dtype=torch.float16)
        self.neg = empty(*shape.latents, dtype=torch.float16) if wanted.neg else None
        self.pixels = empty(3, *shape.pixels, dtype=torch.uint8) if wanted.pixels else None
        latents = {"hq": self.hq, "lq": self.lq, "neg": self.neg}
        self._latents = {name: x.numpy() for name, x in latents.items() if x is not None}
        self._pixels = None if self.pixels is None else self.pixels.numpy()

    def put(self, row: int, sample: SampleBytes) -> None:
        """Copies what is wanted of a sample into its row.

        Raises DamagedSample when something is missing, of another shape, not finite, or no JPEG;
        the row is then to be filled again.
        """
        for name, rows in self._latents.items():
            rows[row] = _latent(sample, name, self._shape)
        if self._pixels is not None:
            self._pixels[row] = _pixels(sample, self._shape).transpose(2, 0, 1)


@dataclass(frozen=True)
class _StoredTensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def _header(sample: SampleBytes) -> bytes:
    """The JSON header of a safetensors file, which begins with its length."""
    length = int.from_bytes(sample.latents[:8], "little")
    return bytes(sample.latents[8 : 8 + length])


@lru_cache(maxsize=256)  # the samples of a bucket have the same one
def _layout(header: bytes) -> tuple[_StoredTensor, ...]:
    try:
        stored = json.loads(header)
        stored.pop("__metadata__", None)
        return tuple(
            _StoredTensor(name, one["dtype"], tuple(one["shape"]), *one["data_offsets"])
            for name, one in stored.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedSample(f"its latents are no safetensors file ({error})") from error


def _latent(sample: SampleBytes, name: str, shape: SampleShape) -> np.ndarray:
    header = _header(sample)
    found = next((tensor for tensor in _layout(header) if tensor.name == name), None)
    if found is None:
        raise DamagedSample(f"it has no tensor {name}")
    if found.dtype != "F16" or found.shape != shape.latents:
        raise DamagedSample(
            f"{name} is {found.dtype} {list(found.shape)}, and its bucket's latents are "
            f"F16 {list(shape.latents)}"
        )
    start = 8 + len(header)
    values = np.frombuffer(sample.latents[start + found.start : start + found.end], np.float16)
    if values.size != np.prod(shape.latents):
        raise DamagedSample(f"{name} is cut off")
    if ((values.view(np.uint16) & _EXPONENT) == _EXPONENT).any():
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
