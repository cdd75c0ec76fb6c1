"""Turns prepared samples into latents, in batches of one shape, while the next ones are prepared.

Which samples share a batch depends on their order alone, never on timing. Knows no files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from datagen.dataset.shards import Latents
from datagen.samples.codecs import Codec
from datagen.samples.prepare import Outcome, PreparedSample

_FLOAT16_MAX = 65504
NOT_FINITE = "latents not finite"


@dataclass(frozen=True)
class Encoded:
    """An outcome with its latents, where there is a sample."""

    outcome: Outcome
    latents: Latents | None


def encode(
    outcomes: Iterable[Outcome], codec: Codec, *, batch: int, device: str
) -> Iterator[Encoded]:
    """Every outcome once. Batches run in a thread of their own, one ahead of what is yielded."""
    with ThreadPoolExecutor(1, "encode", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: Future[list[Encoded]] | None = None
        for group in _batches(outcomes, batch):
            following = pool.submit(_encoded, group, codec, device)
            if running is not None:
                yield from running.result()
            running = following
        if running is not None:
            yield from running.result()


def _batches(outcomes: Iterable[Outcome], size: int) -> Iterator[list[Outcome]]:
    """Groups of `size` samples of one shape; a rejection is a group of its own."""
    open_groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.sample is None:
            yield [outcome]
            continue
        group = open_groups[outcome.sample.drawn.bucket]
        group.append(outcome)
        if len(group) == size:
            yield open_groups.pop(outcome.sample.drawn.bucket)
    for bucket in sorted(open_groups):
        yield open_groups[bucket]


def _encoded(group: list[Outcome], codec: Codec, device: str) -> list[Encoded]:
    samples = [outcome.sample for outcome in group if outcome.sample is not None]
    if not samples:
        return [Encoded(outcome, None) for outcome in group]
    latents = _latents(samples, codec, device)
    return [
        Encoded(outcome, made)
        if made is not None
        else Encoded(replace(outcome, sample=None, reason=NOT_FINITE), None)
        for outcome, made in zip(group, latents, strict=True)
    ]


def _latents(samples: list[PreparedSample], codec: Codec, device: str) -> list[Latents | None]:
    """Of each sample; None where they do not fit float16."""
    images = samples[0].images if len(samples) == 1 else np.concatenate([s.images for s in samples])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last in memory
    latents = codec.encode(pixels.to(device)).unflatten(0, (len(samples), 3))
    # False for NaN too.
    fits = (latents.abs().flatten(1).amax(dim=1) <= _FLOAT16_MAX).tolist()
    stored = latents.to(torch.float16).cpu().contiguous().numpy()
    return [
        Latents(hq=one[0], lq=one[1], neg=one[2]) if fit else None
        for one, fit in zip(stored, fits, strict=True)
    ]
