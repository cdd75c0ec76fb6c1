"""Refuses datasets that cannot be trained on together, before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from datagen.dataset.manifest import Dataset
from datagen.errors import FlowmapsrError
from training.data.bucket_mix import BucketShare, bucket_sizes
from training.settings.stage import StageSettings

_DIGITS = 12
"""Of a digest, in a message."""


def check_mixture(stage: StageSettings, datasets: Sequence[Dataset]) -> None:
    """Checks the sources of a stage against each other.

    Raises:
        FlowmapsrError: a dataset is given twice; latents of different codecs; a source without
            training samples.
    """
    for dataset in datasets[1:]:
        _check_codec(stage, datasets[0], dataset)
    for one, other in itertools.combinations(datasets, 2):
        _check_different(one, other)
    for manifest, root in datasets if len(datasets) > 1 else ():
        try:
            bucket_sizes(manifest, "train")
        except FlowmapsrError as error:
            raise FlowmapsrError(f"sources: {root}: {error}, or leave it out of sources") from error


def check_given(
    stage: StageSettings, datasets: Sequence[Dataset], shares: Sequence[BucketShare]
) -> None:
    """Raises FlowmapsrError for a source whose samples are all of budgets with probability 0."""
    for index, dataset in enumerate(datasets):
        if not any(share.sources[index] for share in shares):
            raise FlowmapsrError(
                f"sources: {dataset.root} has samples only of budgets that stage {stage.name!r} "
                "gives probability 0, so it would give none: leave it out of sources, or raise one"
            )


def _check_different(one: Dataset, other: Dataset) -> None:
    """Else its weights would add up, and each of its passes have two orders."""
    if one.root == other.root:
        what = f"{one.root} is given twice"
    elif one.manifest.digest == other.manifest.digest:
        digest = one.manifest.digest[:_DIGITS]
        what = f"{one.root} and {other.root} are the same dataset (digest {digest})"
    else:
        return
    raise FlowmapsrError(
        f"sources: {what}: its samples would be dealt out as if they were others; give it once, "
        "with the sum of both weights"
    )


def _check_codec(stage: StageSettings, first: Dataset, other: Dataset) -> None:
    """One network reads the latents of all sources, and one codec decodes what it makes."""
    if not stage.batch_fields.latents:
        return
    one, two = first.manifest.require_codec(), other.manifest.require_codec()
    for name in type(one).model_fields:
        values = getattr(one, name), getattr(two, name)
        if values[0] != values[1]:
            raise FlowmapsrError(
                f"sources: stage {stage.name!r} trains on latents, and those of {other.root} are "
                f"of another codec than those of {first.root}: codec.{name} is {values[1]}, not "
                f"{values[0]}. Build one of them again with the codec of the other, or leave it "
                "out of sources"
            )
