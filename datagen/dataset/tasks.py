"""The unit of work: some photos to make shards of, the record that commits it, and the whole plan.

Knows the form of these, not how they come about.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from datagen.dataset import layout
from datagen.dataset.known_photos import KnownPhoto
from datagen.dataset.records import ShardRecord, Split
from datagen.dataset.statistics import PartialStatistics
from datagen.photos.source_file import SourceFile
from datagen.records import FrozenModel
from datagen.settings import DatasetRecipe


class PhotoVariants(NamedTuple):
    """Samples to make of one photo: `variants` of them, from number `first` on."""

    file: SourceFile
    width: int
    """As the header says; what is made depends on the decoded pixels only."""
    height: int
    first: int
    variants: int


class ShardTask(FrozenModel):
    """Photos of about one shape, whose samples fill one shard for each (bucket, split) drawn."""

    index: int
    photos: tuple[PhotoVariants, ...]

    @property
    def path(self) -> str:
        """Of the TaskRecord, relative to the dataset: its presence is the commit of the task."""
        return layout.task_path(self.index)

    @property
    def num_samples(self) -> int:
        return sum(photo.variants for photo in self.photos)

    def shard_path(self, bucket: str, split: Split) -> str:
        """Of the shard that takes this task's samples of a bucket and split."""
        return layout.shard_path(bucket, split, self.index)


class TaskRecord(FrozenModel):
    """A task that is done; written after all of its shards and their records."""

    index: int
    shards: tuple[ShardRecord, ...]
    photos: tuple[KnownPhoto, ...]
    """What became of each photo."""
    stats: PartialStatistics

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def rejected(self) -> list[str]:
        """URIs of the photos that were left out, wholly or in part."""
        return [photo.uri for photo in self.photos if photo.reason is not None]


class Plan(FrozenModel):
    """What a build will make: `plan.json`, while the build is open."""

    schema_version: Literal[1] = 1
    recipe: DatasetRecipe
    recipe_digest: str
    base: str | None
    """SHA-256 of the manifest's file that the build adds to; None for a new dataset."""
    tasks: tuple[ShardTask, ...]
    rejected: tuple[KnownPhoto, ...]
    """Left out already: what listing, headers and hashes show."""
    known_photos: int = 0
    """Photos that the dataset has samples of already."""
    known_rejected: int = 0
    """Images left out of it before, duplicates not counted."""

    @property
    def output(self) -> str:
        return self.recipe.output

    @property
    def num_samples(self) -> int:
        return sum(task.num_samples for task in self.tasks)
