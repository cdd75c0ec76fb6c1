"""A group of held-out samples with what its restored images are compared with."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from datagen.dataset.records import DrawnSample
from datagen.degradation.apply import degrade_small, small_size
from datagen.samples.codecs import Codec
from training.data.loader import Batch, BatchReader
from training.data.planned import PlannedBatch, source_of
from training.inference.pictures.pixels import bicubic
from training.tracking.pictures import to_pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutGroup:
    """Samples of one bucket, on this worker's device."""

    number: int
    """The same for any number of workers."""
    source: int
    """The index of its dataset."""
    batch: Batch
    originals: Tensor
    """HQ, uint8 (B, 3, H, W), like `bicubic`."""
    bicubic: Tensor
    """LQ enlarged to HQ size: the baseline."""
    small: tuple[np.ndarray, ...]
    """LQ at its own size, RGB uint8 (h, w, 3)."""
    scales: tuple[int, ...]
    """Each sample's group of scale."""


def scale_group(scale: float) -> int:
    """The nearest of 1, 2, 4, 8, ... on a logarithmic axis: scales of 2.83 to 5.65 belong to 4."""
    return 2 ** max(0, round(math.log2(scale)))


def read_group(
    reader: BatchReader, planned: PlannedBatch, number: int, *, codec: Codec, device: torch.device
) -> HeldOutGroup:
    """The samples of a planned group; damaged ones are replaced, with a warning.

    The LQ pixels are made once more by the stored parameters of their degradation; those of pairs
    are the stored ones.
    """
    batch = reader.read(planned)
    for skipped in batch.skipped:
        log.warning(
            "a held-out sample cannot be used and is replaced, so held-out values may differ from "
            "earlier ones: %s",
            skipped,
        )
    batch = batch.to(device)
    pixels = batch.hq_pixels
    originals = to_pixels(codec.decode(batch.hq)) if pixels is None else pixels
    drawn = [DrawnSample.model_validate_json(meta) for meta in batch.meta]
    images = originals.permute(0, 2, 3, 1).cpu().numpy()
    size = (images.shape[2], images.shape[1])
    stored = _lq_pixels(batch, codec) if any(one.lq is None for one in drawn) else images
    small, enlarged = [], []
    for image, lq, one in zip(images, stored, drawn, strict=True):
        if one.lq is not None:
            small.append(degrade_small(image, one.lq))
            enlarged.append(bicubic(small[-1], size))
        else:  # the LQ of a pair, which bicubic interpolation laid on the pixels of the HQ
            shape = small_size(size, one.scale)
            small.append(cv2.resize(lq, shape, interpolation=cv2.INTER_AREA))
            enlarged.append(lq)
    return HeldOutGroup(
        number=number,
        source=source_of(planned.samples[0].part),
        batch=batch,
        originals=originals,
        bicubic=torch.from_numpy(np.stack(enlarged)).permute(0, 3, 1, 2).to(device),
        small=tuple(small),
        scales=tuple(scale_group(one.scale) for one in drawn),
    )


def _lq_pixels(batch: Batch, codec: Codec) -> np.ndarray:
    """At HQ size, uint8 (B, H, W, 3)."""
    stored = batch.lq_pixels
    pixels = to_pixels(codec.decode(batch.lq) if stored is None else 2 * stored - 1)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
