"""Validation while training: losses and quality of the present model on held-out samples.

Every worker measures its share of the groups, and all get the same result, which does not depend
on how many they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from datagen.samples.codecs import Codec
from training.data.loader import BatchReader
from training.data.planned import PlannedBatch
from training.data.seeded import seeded
from training.evaluation.metrics.fidelity import psnr
from training.system_protocol import SystemStage
from training.tracking.pictures import PHOTO, Panel, panel_grid, to_pixels
from training.trainer import StepTerms
from training.validation.measures import NO_MEASURES, Measures
from training.validation.quality import (
    BICUBIC,
    ORIGINAL,
    Measured,
    Points,
    Quality,
    held_out_metrics,
    joined,
    mean_spectra,
)
from training.validation.samples import HeldOutGroup, read_group

log = logging.getLogger(__name__)

SHOWN = 256
"""Largest side of the shown part of a sample, pixels."""
PICTURES = 4
"""Groups whose first sample is shown."""


@dataclass(frozen=True)
class Validation:
    """What was measured, the same on every worker; where nothing is held out, only losses of
    training samples and pictures."""

    losses: Sequence[StepTerms]
    """Of each group."""
    metrics: Mapping[str, float]
    """By the names that MLflow shows, `val/...`."""
    over_time: Mapping[str, Points]
    """Of each loss that depends on a time: t and value of every sample."""
    spectra: Mapping[str, np.ndarray]
    """Of bicubic, restored and original images: the mean power in each band of frequency."""
    pictures: Mapping[str, Image.Image]
    """By name."""
    steps: int
    """The first of those that images were restored in."""
    measures_seconds: float = 0.0
    """What the metrics that the recipe adds took the slowest worker."""

    @property
    def headline(self) -> str:
        """For a person; empty where nothing is held out."""
        if not self.metrics:
            return ""
        quality, gain = (self.metrics[f"val/{name}_nfe{self.steps}"] for name in ("psnr", "gain"))
        words = "one step" if self.steps == 1 else f"{self.steps} steps"
        return f"held out: {words} {quality:.2f} dB, {gain:+.2f} over bicubic"


class Validator:
    """The held-out samples of one worker, in memory."""

    @torch.no_grad()
    def __init__(
        self,
        reader: BatchReader,
        groups: Sequence[PlannedBatch],
        *,
        codec: Codec,
        device: torch.device,
        measures: Measures = NO_MEASURES,
    ) -> None:
        """
        Args:
            groups: all of them, on every worker.
            measures: further metrics, the same on every worker.
        """
        self._held_out = reader.schedule.split == "validation"
        spread = (len(groups) * index // PICTURES for index in range(PICTURES))
        self._shown = {number: PHOTO.format(i) for i, number in enumerate(sorted(set(spread)), 1)}
        numbers = range(len(groups)) if self._held_out else sorted(self._shown)
        mine = numbers[dist.get_rank() :: dist.get_world_size()]
        self._groups = [
            read_group(reader, groups[number], number, codec=codec, device=device)
            for number in mine
        ]
        self._measures = measures if self._held_out else NO_MEASURES
        self._fixed = [_fixed_quality(group, self._measures) for group in self._groups]
        self._told = False
        self.newest: Validation | None = None

    @torch.no_grad()
    def validate(self, model: SystemStage, *, all_metrics: bool = True) -> Validation:
        """Measures the model; every worker must call it, with whole parameters.

        Args:
            all_metrics: those of the recipe too.
        """
        measures = self._measures if all_metrics else NO_MEASURES
        before = measures.seconds
        mine: list[Measured] = []
        drawn: dict[str, Image.Image] = {}
        for read, fixed in zip(self._groups, self._fixed, strict=True):
            group = replace(read, batch=model.prepared(read.batch))
            restored = {
                f"nfe{steps}": to_pixels(model.restored(group.batch, steps=steps))
                for steps in model.steps
            }
            mine.append(_measure(group, restored, model, fixed, measures))
            if group.number in self._shown:
                more = {name: to_pixels(one) for name, one in model.shown(group.batch).items()}
                drawn[self._shown[group.number]] = _picture(group, more | restored)
        everyone: list[Any] = [None] * dist.get_world_size()
        shared = (mine, drawn, measures.seconds - before, measures.missed)
        dist.all_gather_object(everyone, shared)
        found = sorted((one for each in everyone for one in each[0]), key=lambda one: one.number)
        pictures = {name: image for each in everyone for name, image in each[1].items()}
        losses = [one.terms for one in found]
        if not self._held_out:
            found = []
        self.newest = Validation(
            losses=losses,
            metrics=held_out_metrics(found),
            over_time=joined(one.over_time for one in found),
            spectra=mean_spectra(found),
            pictures={name: pictures[name] for name in sorted(pictures)},
            steps=model.steps[0],
            measures_seconds=max(each[2] for each in everyone),
        )
        if measures.metrics and not self._told and dist.get_rank() == 0:
            self._told = True
            _tell(self.newest, measures, {k: v for each in everyone for k, v in each[3].items()})
        return self.newest


def _tell(found: Validation, measures: Measures, missed: Mapping[str, str]) -> None:
    """What the recipe's metrics cost, and which of them the samples are too small for."""
    log.info(
        "%s of the held-out samples take %.2g s of a validation; validation.every=N measures them "
        "in each Nth only",
        ", ".join(one.name for one in measures.metrics),
        found.measures_seconds,
    )
    for name, why in missed.items():
        log.warning("validation measures %s of a part of the samples, or none: %s", name, why)


def _fixed_quality(group: HeldOutGroup, measures: Measures) -> dict[str, Quality]:
    """Of the images that are the same at every validation."""
    return {
        BICUBIC: Quality.of(group.bicubic, group.originals, measures),
        ORIGINAL: Quality.of(group.originals, group.originals),
    }


def _measure(
    group: HeldOutGroup,
    restored: Mapping[str, Tensor],
    model: SystemStage,
    fixed: dict[str, Quality],
    measures: Measures,
) -> Measured:
    # The noise of a group is the same at every validation, in every training.
    seed = int(seeded("validation", group.number).integers(2**62))
    losses = model.losses(group.batch, torch.Generator().manual_seed(seed))
    quality = {
        name: Quality.of(images, group.originals, measures) for name, images in restored.items()
    }
    return Measured(
        number=group.number,
        source=group.source,
        scales=group.scales,
        terms={name: (float(term.sum), term.count) for name, term in losses.terms.items()},
        over_time={
            name: list(zip(t.tolist(), values.tolist(), strict=True))
            for name, (t, values) in losses.over_time.items()
        },
        quality=(fixed if measures.metrics else _without_values(fixed)) | quality,
    )


def _without_values(qualities: Mapping[str, Quality]) -> dict[str, Quality]:
    return {name: replace(one, values={}) for name, one in qualities.items()}


def _picture(group: HeldOutGroup, restored: Mapping[str, Tensor]) -> Image.Image:
    """The first sample: LQ, bicubic and one step above two steps, four steps and HQ."""
    original, small = group.originals[0], group.small[0]
    height, width = original.shape[1:]
    enlarged = Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)
    panels = [Panel("LQ", np.asarray(enlarged), f"{small.shape[1]}x{small.shape[0]}")]
    for name, batch in {BICUBIC: group.bicubic, **restored}.items():
        quality = float(psnr(original[None], batch[:1]))
        label = name.replace("nfe", "NFE ")
        panels.append(Panel(label, _pixels(batch[0]), f"{quality:.2f} dB"))
    panels.append(Panel("HQ", _pixels(original), f"{width}x{height}"))
    zoom = max(1, SHOWN // max(height, width))
    return panel_grid(panels, columns=3, crop=SHOWN, zoom=zoom)


def _pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3) in host memory."""
    pixels: np.ndarray = image.permute(1, 2, 0).cpu().numpy()
    return pixels
