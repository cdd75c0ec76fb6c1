"""Decodes and checks samples' bytes into the tensors of a micro batch.

Latents stay float16, as stored, and are copied into the batch while the bytes just read are still
in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from datagen.dataset.records import DrawnSample
from datagen.dataset.shards import ShardSample
from datagen.samples.pixels import decode_pixels, lq_at_hq_size
from datagen.settings import LqPixels
from training.settings.batch_fields import BatchFields


class DamagedSample(Exception):
    """A sample that cannot be trained on, with the reason."""


class BatchBuffer:
    """The tensors of a micro batch, filled sample by sample."""

    def __init__(
        self,
        samples: int,
        latents: tuple[int, int, int],
        pixels: tuple[int, int],
        fields: BatchFields,
        *,
        stored_lq: LqPixels,
        pin: bool,
    ) -> None:
        """
        Args:
            latents, pixels: shapes (C, h, w) and (H, W) of the bucket's samples.
            stored_lq: how the dataset stores LQ pixels.
            pin: use page-locked memory, from which copies to a GPU run in the background.
        """

        def empty(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty((samples, *size), dtype=dtype, pin_memory=pin)

        self._stored_lq = stored_lq
        self.latents: dict[str, Tensor] = {
            name: empty(*latents, dtype=torch.float16) for name in fields.latents
        }
        self.hq_pixels = empty(3, *pixels, dtype=torch.uint8) if fields.hq_pixels else None
        self.lq_pixels = empty(3, *pixels, dtype=torch.float32) if fields.lq_pixels else None

    def put(self, row: int, sample: ShardSample) -> None:
        """Copies a sample's fields into a row.

        Raises:
            DamagedSample: a field is missing, has another shape, is not finite, or is no image;
                fill the row again then.
        """
        tensors = _tensors(sample) if self.latents else {}
        for name, rows in self.latents.items():
            rows.numpy()[row] = _latent(name, tensors.get(name), rows.shape[1:])
        if self.hq_pixels is not None:
            image = _pixels("HQ", sample.hq_image)
            _check_size("HQ", image, self.hq_pixels)
            self.hq_pixels.numpy()[row] = image.transpose(2, 0, 1)
        if self.lq_pixels is not None:
            drawn = DrawnSample.model_validate_json(sample.meta)
            image = lq_at_hq_size(_pixels("LQ", sample.lq_image), drawn, self._stored_lq)
            _check_size("LQ", image, self.lq_pixels)
            self.lq_pixels.numpy()[row] = image.transpose(2, 0, 1)


def _tensors(sample: ShardSample) -> dict[str, dict[str, Any]]:
    """Data type, shape and bytes of each tensor by its name."""
    if sample.latents is None:
        raise DamagedSample("it has no latents")
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


def _pixels(what: str, stored: bytes | None) -> np.ndarray:
    if stored is None:
        raise DamagedSample(f"it has no {what} pixels")
    rgb = decode_pixels(stored)
    if rgb is None:
        raise DamagedSample(f"its {what} pixels cannot be decoded")
    return rgb


def _check_size(what: str, pixels: np.ndarray, rows: Tensor) -> None:
    if pixels.shape[:2] != tuple(rows.shape[2:]):
        height, width, _ = pixels.shape
        raise DamagedSample(f"its {what} pixels are {width}x{height}, not its bucket's")
