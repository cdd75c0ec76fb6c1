"""The photos of an evaluation by name and scale, not read yet: photos that are to be degraded,
pairs, whose scale their sizes say, or LQ pictures without originals.

A list is cheap and picklable, so that parts of it can be read elsewhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from datagen.pair_settings import PairSettings
from datagen.pairs.matching import match_pairs
from datagen.pairs.registration import size_fault
from datagen.photos.scan import HeaderReader
from datagen.photos.source_file import Rejection, SourceFile, kind_of
from datagen.photos.sources import list_sources
from datagen.settings import FilterSettings, ImageSettings
from training.settings.evaluation import EvaluationSettings

IMAGES = ImageSettings()
"""How photos are read: transparent, damaged and animated ones are left out."""


class PhotoFile(NamedTuple):
    """A photo that is evaluated at a scale."""

    name: str
    """Its path below the folder."""
    scale: float
    file: SourceFile
    """Of a pair, its HQ."""
    lq: SourceFile | None = None
    """Of a pair."""
    has_original: bool = True
    """False where the file is an LQ picture itself."""


@dataclass(frozen=True)
class PhotoList:
    """What an evaluation is to read, and what of the folders it cannot use."""

    photos: tuple[PhotoFile, ...]
    """By scale, in the order of their names."""
    left_out: tuple[Rejection, ...] = ()

    @property
    def scales(self) -> tuple[float, ...]:
        """Each once, in their order."""
        return tuple(dict.fromkeys(photo.scale for photo in self.photos))

    def at(self, scale: float) -> tuple[PhotoFile, ...]:
        """Those of one scale."""
        return tuple(photo for photo in self.photos if photo.scale == scale)


def list_photos(settings: EvaluationSettings) -> PhotoList:
    """
    Raises:
        FlowmapsrError: a folder is missing or holds no photo, or no HQ has an LQ.
    """
    if settings.pairs is not None:
        return _pairs(settings.pairs)
    folder = settings.photos or settings.no_reference
    assert folder is not None
    found = list_sources((folder,))
    photos = [
        PhotoFile(_name(file.uri, folder), scale, file, has_original=settings.has_originals)
        for scale in dict.fromkeys(settings.factors)
        for file in found.files
    ]
    return PhotoList(tuple(photos), found.rejected)


def _pairs(settings: PairSettings) -> PhotoList:
    hq = list_sources((settings.hq,))
    lq = hq if settings.lq == settings.hq else list_sources((settings.lq,))
    matched = match_pairs(settings, hq=hq.files, lq=lq.files)
    found = [_pair(settings, *pair) for pair in matched.pairs]
    photos = sorted((one for one in found if isinstance(one, PhotoFile)), key=lambda one: one.scale)
    unusable = (one for one in found if isinstance(one, Rejection))
    others = {*hq.rejected, *lq.rejected}
    return PhotoList(tuple(photos), (*sorted(others), *matched.rejected, *unusable))


def _pair(settings: PairSettings, hq: SourceFile, lq: SourceFile) -> PhotoFile | Rejection:
    of_hq, of_lq = HeaderReader(IMAGES, FilterSettings())((hq, lq))
    if isinstance(of_hq, Rejection):
        return of_hq
    if isinstance(of_lq, Rejection):
        return Rejection(hq.uri, f"{of_lq.reason} (LQ {lq.uri})")
    large, small = (of_hq.width, of_hq.height), (of_lq.width, of_lq.height)
    fault = size_fault(hq=large, lq=small)
    if fault is not None:
        return Rejection(hq.uri, fault)
    return PhotoFile(_name(hq.uri, settings.hq), scale_of(hq=large, lq=small), hq, lq)


def scale_of(*, hq: tuple[int, int], lq: tuple[int, int]) -> float:
    """Of a pair, by its sizes (width, height), which have no fault: a whole number where the LQ is
    that of it but for rounding, else with two decimals."""
    scale = math.sqrt(hq[0] / lq[0] * (hq[1] / lq[1]))
    whole = round(scale)
    if all(abs(large / whole - small) <= 1 for large, small in zip(hq, lq, strict=True)):
        return float(whole)
    return round(scale, 2)


def told(found: Iterable[Rejection]) -> list[str]:
    """A line for each reason: a photo, why, and how many more."""
    by_kind: dict[str, dict[str, str]] = {}
    for one in found:
        by_kind.setdefault(kind_of(one.reason), {}).setdefault(one.uri, one.reason)
    lines = []
    for photos in by_kind.values():
        uri, reason = next(iter(photos.items()))
        more = f", and {len(photos) - 1} more" if len(photos) > 1 else ""
        lines.append(f"{uri}: {reason}{more}")
    return lines


def _name(uri: str, folder: str) -> str:
    return uri.removeprefix(folder.rstrip("/") + "/") if uri != folder else os.path.basename(uri)
