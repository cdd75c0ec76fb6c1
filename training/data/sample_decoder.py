"""Decodes and checks samples' bytes into the tensors of a micro batch.

Latents stay float16, as stored, and are copied into the batch while the bytes just read are still
in the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import safetensors
import torch
from torch import Tensor

from datagen.dataset.shards import ShardSample


class DamagedSample(Exception):
    """A sample that cannot be trained on, with the reason."""


@dataclass(frozen=True)
class BatchFields:
    """What a batch has besides hq and lq."""

    neg: bool
    pixels: bool


def holds(sample: ShardSample) -> BatchFields:
    """The optional fields that a sample has."""
    return BatchFields(neg="neg" in _tensors(sample), pixels=sample.hq_jpeg is not None)


class BatchBuffer:
    """The tensors of a micro batch, filled sample by sample."""

    def __init__(
        self,
        samples: int,
        latents: tuple[int, int, int],
        pixels: tuple[int, int],
        fields: BatchFields,
        *,
        pin: bool,
    ) -> None:
        """
        Args:
            latents, pixels: shapes (C, h, w) and (H, W) of the bucket's samples.
            pin: use page-locked memory, from which copies to a GPU run in the background.
        """

        def empty(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty((samples, *size), dtype=dtype, pin_memory=pin)

        names = ("hq", "lq", "neg") if fields.neg else ("hq", "lq")
        self.latents = {name: empty(*latents, dtype=torch.float16) for name in names}
        self.pixels = empty(3, *pixels, dtype=torch.uint8) if fields.pixels else None

    def put(self, row: int, sample: ShardSample) -> None:
        """Copies a sample's fields into a row.

        Raises:
            DamagedSample: a field is missing, has another shape, is not finite, or is no JPEG; fill
                the row again then.
        """
        tensors = _tensors(sample)
        for name, rows in self.latents.items():
            rows.numpy()[row] = _latent(name, tensors.get(name), rows.shape[1:])
        if self.pixels is not None:
            image = _pixels(sample, self.pixels.shape[2:])
            self.pixels.numpy()[row] = image.transpose(2, 0, 1)


def _tensors(sample: ShardSample) -> dict[str, dict[str, Any]]:
    """Data type, shape and bytes of each tensor by its name."""
    try:
        return dict(safetensors.deserialize(sample.latents))
    except safetensors.SafetensorError as error:
        raise DamagedSample(f"its latents are not a safetensors file ({error})") from error


def _latent(name: str, found: dict[str, Any] | None, shape: tuple[int, ...]) -> np.ndarray:
    if found is None:
        raise DamagedSample(f"it has no tensor {name}")
    if found["dtype"] != "F16" or found["shape"] != list(shape):
        raise DamagedSample(
            f"{name} is {found['dtype']} {found['shape']}, and its bucket's latents are "
            f"F16 {list(shape)}"
        )
    values = np.frombuffer(found["data"], np.float16)
    # As integers, infinities and NaN are the largest of their sign; far faster than isfinite.
    if values.view(np.int16).max() >= 0x7C00 or values.view(np.uint16).max() >= 0xFC00:
        raise DamagedSample(f"{name} holds values that are not finite")
    return values.reshape(shape)


def _pixels(sample: ShardSample, shape: tuple[int, ...]) -> np.ndarray:
    if sample.hq_jpeg is None:
        raise DamagedSample("it has no hq.jpg")
    rgb = cv2.imdecode(np.frombuffer(sample.hq_jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    if rgb is None:
        raise DamagedSample("hq.jpg cannot be decoded")
    if rgb.shape != (*shape, 3):
        raise DamagedSample(f"hq.jpg is {rgb.shape[0]}x{rgb.shape[1]} pixels, not its bucket's")
    return rgb
