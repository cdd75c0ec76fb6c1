"""Verifies a dataset with progress on the terminal. Knows not what is checked."""

from __future__ import annotations

from datagen.dataset.manifest import load_manifest
from datagen.errors import FlowmapsrError
from datagen.review.verify import Fault, verify_dataset
from pipelines.terminal.progress import show_progress


def verify_shown(dataset: str) -> list[Fault]:
    """`verify_dataset`, one step of progress for each shard."""
    try:
        shards = load_manifest(dataset).num_shards
    except FlowmapsrError:  # a fault, which the verification names
        return verify_dataset(dataset)
    with show_progress("verify", total=shards, unit="shards") as progress:
        return verify_dataset(dataset, on_shard=lambda done, _: progress.reach(done))
