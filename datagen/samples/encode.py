"""Adds the latents to prepared samples, in batches of one shape, while the next ones are prepared.

Which samples share a batch depends on their order alone, never on timing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from datagen.io.prefetch import read_ahead
from datagen.photos.source_file import Rejection
from datagen.samples.codecs import Codec
from datagen.samples.prepare import PreparedSample, SampleResult
from datagen.settings import DatasetRecipe, LatentName

_FLOAT16_MAX = 65504
NOT_FINITE = "latents not finite"


def encode(
    results: Iterable[SampleResult], codec: Codec, recipe: DatasetRecipe, *, device: str
) -> Iterator[SampleResult]:
    """Every result once, samples with their latents; one batch is encoded ahead of its use."""

    def work(group: list[PreparedSample] | Rejection) -> list[SampleResult]:
        return (
            [group]
            if isinstance(group, Rejection)
            else _encoded(group, codec, recipe.latents, device)
        )

    for group in read_ahead(_batches(results, recipe.codec.batch), work, threads=1, ahead=1):
        yield from group


def _batches(
    results: Iterable[SampleResult], size: int
) -> Iterator[list[PreparedSample] | Rejection]:
    """Lists of `size` samples of one shape, and the rejections between them."""
    open_groups: dict[str, list[PreparedSample]] = defaultdict(list)
    for result in results:
        if isinstance(result, Rejection):
            yield result
            continue
        group = open_groups[result.drawn.bucket]
        group.append(result)
        if len(group) == size:
            yield open_groups.pop(result.drawn.bucket)
    for bucket in sorted(open_groups):
        yield open_groups[bucket]


def _encoded(
    samples: list[PreparedSample], codec: Codec, names: Sequence[LatentName], device: str
) -> list[SampleResult]:
    # The builder works on one core, but OpenMP counts threads for each thread that calls it: in
    # this one a convolution would take all cores (measured: 2.0 of 2 busy, 1.0 with this line).
    torch.set_num_threads(1)
    images = samples[0].images if len(samples) == 1 else np.concatenate([s.images for s in samples])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last in memory
    latents = codec.encode(pixels.to(device)).unflatten(0, (len(samples), len(names)))
    # False for NaN too.
    fits = (latents.abs().flatten(1).amax(dim=1) <= _FLOAT16_MAX).tolist()
    stored = latents.to(torch.float16).cpu().contiguous().numpy()
    return [
        replace(sample, latents=dict(zip(names, one, strict=True)))
        if fit
        else Rejection(sample.drawn.source, NOT_FINITE)
        for sample, one, fit in zip(samples, stored, fits, strict=True)
    ]
