"""Groups photos of about one shape into tasks of so many samples each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from datagen.dataset.known_photos import KnownPhoto, rejected_photo
from datagen.dataset.tasks import PhotoVariants, ShardTask
from datagen.samples.buckets import TOO_SMALL, fitting_buckets
from datagen.settings import BucketSettings


@dataclass(frozen=True)
class PhotoGroups:
    """Photos in their order, by the names of the buckets that they may fall into."""

    photos: dict[tuple[str, ...], list[PhotoVariants]]
    too_small: list[KnownPhoto]
    """Those that fit no bucket."""


def group_by_buckets(photos: Iterable[PhotoVariants], settings: BucketSettings) -> PhotoGroups:
    groups: dict[tuple[str, ...], list[PhotoVariants]] = defaultdict(list)
    too_small: list[KnownPhoto] = []

    @cache  # photos have few different sizes
    def fitting(width: int, height: int) -> tuple[str, ...]:
        found = fitting_buckets(settings, width=width, height=height)
        return tuple(bucket.name for _, bucket in found)

    for photo in photos:
        names = fitting(photo.width, photo.height)
        if names:
            groups[names].append(photo)
        else:
            too_small.append(rejected_photo(photo.file, TOO_SMALL))
    return PhotoGroups(groups, too_small)


def make_tasks(groups: PhotoGroups, *, samples: int, first_index: int) -> Iterator[ShardTask]:
    """Tasks of `samples` samples each, the last one of a group with the rest."""
    index = first_index
    for name in sorted(groups.photos):
        for photos in _portions(groups.photos[name], samples):
            # Not validated again: for a million photos that takes a third of the planning time.
            yield ShardTask.model_construct(index=index, photos=tuple(photos))
            index += 1


def _portions(photos: Sequence[PhotoVariants], samples: int) -> Iterator[list[PhotoVariants]]:
    portion: list[PhotoVariants] = []
    free = samples
    for photo in photos:
        first, left = photo.first, photo.variants
        while left:
            take = min(free, left)
            whole = take == photo.variants
            portion.append(photo if whole else photo._replace(first=first, variants=take))
            first, left, free = first + take, left - take, free - take
            if not free:
                yield portion
                portion, free = [], samples
    if portion:
        yield portion
