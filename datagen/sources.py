"""Turns source URIs into a fixed, ordered list of photos, each known by the hash of its bytes.

Reads headers, never pixels. Knows no recipe and no buckets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from datagen import storage
from datagen.errors import FlowmapsrError
from datagen.fields import Settings
from datagen.images import SUFFIXES, ImageRejected, read_header
from datagen.settings import FilterSettings, ImageSettings

_THREADS = 8
_IMAGES, _FILTERS = ImageSettings(), FilterSettings()
DUPLICATE = "duplicate"
"""Reason of a file whose bytes are those of another one: left out, but nothing is wrong with it."""


class SourceImage(Settings):
    """One photo as found: where, which bytes, and its size as displayed (pixels)."""

    uri: str
    sha256: str
    width: int
    height: int
    bytes: int


class Rejection(Settings):
    """One image left out of the dataset and why (a line of `rejected.jsonl`)."""

    uri: str
    reason: str


@dataclass(frozen=True)
class SourceListing:
    """Photos in the order of their hash, and what was left out in the order of its URI."""

    images: tuple[SourceImage, ...]
    rejected: tuple[Rejection, ...]


def list_sources(
    sources: Sequence[str],
    *,
    images: ImageSettings = _IMAGES,
    filters: FilterSettings = _FILTERS,
) -> SourceListing:
    """Reads every photo of the folders, files and prefixes; the order of `sources` does not matter.

    Files without an image suffix are ignored inside folders; an image file that cannot be read is
    a rejection. Of files with equal bytes the one with the smallest URI is kept. Raises
    FlowmapsrError for a source that is missing or holds no image file.
    """
    uris = sorted({uri for source in sources for uri in _image_files(source)})
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda uri: _inspect(uri, images, filters), uris))
    kept: dict[str, SourceImage] = {}
    rejected: list[Rejection] = []
    for item in found:
        if isinstance(item, Rejection):
            rejected.append(item)
        elif item.sha256 in kept:
            rejected.append(Rejection(uri=item.uri, reason=DUPLICATE))
        else:
            kept[item.sha256] = item
    return SourceListing(tuple(kept[digest] for digest in sorted(kept)), tuple(rejected))


def _image_files(source: str) -> list[str]:
    source = source if storage.is_remote(source) else os.path.normpath(source)
    files = storage.list_files(source)
    if files == [source]:
        return files
    images = [uri for uri in files if _is_image(uri)]
    if not images:
        raise FlowmapsrError(
            f"{source}: no photo in it; looked for {' '.join(sorted(SUFFIXES))} "
            f"among {len(files)} files"
        )
    return images


def _is_image(uri: str) -> bool:
    name = PurePosixPath(uri)
    return name.suffix.lower() in SUFFIXES and not name.name.startswith(".")


def _inspect(uri: str, images: ImageSettings, filters: FilterSettings) -> SourceImage | Rejection:
    try:
        data = storage.read_bytes(uri)
        width, height = read_header(data, complete=True, images=images, filters=filters)
    except ImageRejected as rejected:
        return Rejection(uri=uri, reason=rejected.reason)
    except storage.NotFoundError:
        return Rejection(uri=uri, reason="missing")
    digest = hashlib.sha256(data).hexdigest()
    return SourceImage(uri=uri, sha256=digest, width=width, height=height, bytes=len(data))
