"""The unit of work: photos to make shards of, the record that commits it, and the whole plan."""

from __future__ import annotations

from typing import Literal, NamedTuple

from datagen.dataset.known_photos import KnownPhoto
from datagen.dataset.layout import TASKS
from datagen.dataset.records import Registration, ShardRecord
from datagen.dataset.statistics import PartialStatistics
from datagen.photos.source_file import SourceFile
from datagen.records import FrozenModel
from datagen.settings import DatasetRecipe


class PlannedLq(NamedTuple):
    """The other half of a pair."""

    file: SourceFile
    registration: Registration


class PhotoVariants(NamedTuple):
    """Samples to make of one photo: `variants` of them, from number `first` on."""

    file: SourceFile
    width: int
    """According to the header; samples depend on the decoded pixels only."""
    height: int
    first: int
    variants: int
    lq: PlannedLq | None = None


class ShardTask(FrozenModel):
    """Photos of similar shape; their samples fill one shard per (bucket, split) drawn."""

    index: int
    photos: tuple[PhotoVariants, ...]

    @property
    def path(self) -> str:
        """Of the TaskRecord, relative to the dataset; its presence commits the task."""
        return f"{TASKS}/{self.index:06d}.json"

    @property
    def num_samples(self) -> int:
        return sum(photo.variants for photo in self.photos)


class TaskRecord(FrozenModel):
    """A finished task; written after all of its shards and their records."""

    index: int
    shards: tuple[ShardRecord, ...]
    photos: tuple[KnownPhoto, ...]
    """Result for each photo."""
    stats: PartialStatistics

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def rejected(self) -> dict[str, str]:
        """Reasons by URI of the photos left out, completely or in part."""
        return {photo.uri: photo.reason for photo in self.photos if photo.reason is not None}


class Plan(FrozenModel):
    """What a build will make: `plan.json`, while the build is open."""

    schema_version: Literal[1] = 1
    recipe: DatasetRecipe
    recipe_digest: str
    base: str | None
    """SHA-256 of the manifest file that the build adds to; None for a new dataset."""
    tasks: tuple[ShardTask, ...]
    rejected: tuple[KnownPhoto, ...]
    """Left out by listing, headers and hashes."""
    known_photos: int = 0
    """Photos that have samples in the dataset already."""
    known_rejected: int = 0
    """Images that could not be used before, without duplicates and those left out by filters."""

    @property
    def output(self) -> str:
        return self.recipe.output

    @property
    def num_samples(self) -> int:
        return sum(task.num_samples for task in self.tasks)
