"""Decodes and checks samples' bytes into the tensors of a micro batch.

Latents stay float16, as stored, and are copied into the batch while the bytes just read are still
in the processor's cache.
"""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
import safetensors
import torch
from torch import Tensor

from datagen.dataset.records import DrawnSample
from datagen.dataset.shards import ShardSample
from datagen.degradation.apply import degrade
from datagen.samples.pixels import decode_pixels, lq_at_hq_size
from datagen.settings import LqPixels
from training.data.batch_memory import BatchMemory
from training.data.fresh_degradation import FreshDegradation
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
        memory: BatchMemory,
    ) -> None:
        """
        Args:
            latents, pixels: shapes (C, h, w) and (H, W) of the bucket's samples.
        """

        def empty(*size: int, dtype: torch.dtype) -> Tensor:
            return memory.empty(samples, *size, dtype=dtype)

        self.degrade_seconds = 0.0
        """Spent on fresh degradations."""
        self.latents: dict[str, Tensor] = {
            name: empty(*latents, dtype=torch.float16) for name in fields.latents
        }
        self.hq_pixels = empty(3, *pixels, dtype=torch.uint8) if fields.hq_pixels else None
        has_lq = fields.lq_pixels != "none"
        self._lq_rows = empty(*pixels, 3, dtype=torch.float32) if has_lq else None
        """As degradations write it: channels last in memory."""
        self._size = pixels

    def put(
        self,
        row: int,
        sample: ShardSample,
        *,
        epoch: int,
        stored_lq: LqPixels,
        fresh: FreshDegradation | None,
    ) -> None:
        """Copies a sample's fields into a row.

        Args:
            epoch: of its source's part of the bucket.
            stored_lq: how its dataset stores LQ pixels.
            fresh: what makes them anew; None reads the stored ones.

        Raises:
            DamagedSample: a field is missing, has another shape, is not finite, or is no image;
                fill the row again then.
        """
        tensors = _tensors(sample) if self.latents else {}
        for name, rows in self.latents.items():
            rows.numpy()[row] = _latent(name, tensors.get(name), rows.shape[1:])
        hq, has_lq = None, self._lq_rows is not None
        if self.hq_pixels is not None or (has_lq and (fresh is not None or stored_lq == "none")):
            hq = self._of_bucket("HQ", _decoded("HQ", sample.hq_image))
        if self.hq_pixels is not None and hq is not None:
            cv2.split(hq, list(self.hq_pixels[row].numpy()))
        if self._lq_rows is None:
            return
        out = self._lq_rows[row].numpy()
        if hq is not None and fresh is not None:
            start = time.perf_counter()
            fresh.lq(hq, key=sample.key, epoch=epoch, out=out)
            self.degrade_seconds += time.perf_counter() - start
        else:
            self._put_stored_lq(sample, hq, stored_lq, out)

    @property
    def lq_pixels(self) -> Tensor | None:
        return None if self._lq_rows is None else self._lq_rows.permute(0, 3, 1, 2)

    def _put_stored_lq(
        self, sample: ShardSample, hq: np.ndarray | None, stored_lq: LqPixels, out: np.ndarray
    ) -> None:
        drawn = DrawnSample.model_validate_json(sample.meta)
        if hq is not None and stored_lq == "none":
            if drawn.lq is None:
                raise DamagedSample("the LQ pixels of its pair are not stored")
            degrade(hq, drawn.lq, out=out)
            return
        stored = _decoded("LQ", sample.lq_image)
        if stored_lq == "full":
            self._of_bucket("LQ", stored)
        lq_at_hq_size(stored, drawn, stored_lq, out=out)

    def _of_bucket(self, what: str, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] != self._size:
            height, width, _ = pixels.shape
            raise DamagedSample(f"its {what} pixels are {width}x{height}, not its bucket's")
        return pixels


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


def _decoded(what: str, stored: bytes | None) -> np.ndarray:
    if stored is None:
        raise DamagedSample(f"it has no {what} pixels")
    rgb = decode_pixels(stored)
    if rgb is None:
        raise DamagedSample(f"its {what} pixels cannot be decoded")
    return rgb
