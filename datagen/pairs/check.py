"""Reads and registers pairs, a chunk of them in one call, so that a cluster can map it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np

from datagen.dataset.records import Registration
from datagen.dataset.tasks import PlannedLq
from datagen.io import storage
from datagen.pairs.registration import fault, register, size_fault
from datagen.photos.decode import ImageRejected, load_image, read_header, upright_photo
from datagen.photos.scan import MapChunks, chunked
from datagen.photos.source_file import Rejection, SourceFile, read_photo
from datagen.settings import FilterSettings, ImageSettings

_CHUNK = 2  # pairs in one call: one may take a second
_THREADS = 2  # each holds two decoded pictures


@dataclass(frozen=True)
class PairChecker:
    """How each pair of HQ and LQ of a chunk is registered, in its order; or why it is left out."""

    images: ImageSettings
    filters: FilterSettings

    def __call__(
        self, chunk: Sequence[tuple[SourceFile, SourceFile]]
    ) -> list[Registration | Rejection]:
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(self._check, chunk))

    def _check(self, pair: tuple[SourceFile, SourceFile]) -> Registration | Rejection:
        hq_file, lq_file = pair
        try:
            hq = self._read(hq_file)
            with reasons_of_lq(lq_file):
                lq = self._read(lq_file)
        except (ImageRejected, storage.UnreadableError) as error:
            return Rejection(hq_file.uri, error.reason)
        what = size_fault(hq=(hq.shape[1], hq.shape[0]), lq=(lq.shape[1], lq.shape[0]))
        if what is None:
            found = register(hq, lq)
            what = fault(found, largest_offset=self.filters.max_pair_offset)
        return found if what is None else Rejection(hq_file.uri, what)

    def _read(self, file: SourceFile) -> np.ndarray:
        data = read_photo(file)
        largest = FilterSettings(max_megapixels=self.filters.max_megapixels)
        read_header(data, size=len(data), images=self.images, filters=largest)
        return upright_photo(load_image(data, self.images), self.images)


@contextmanager
def reasons_of_lq(file: SourceFile) -> Iterator[None]:
    """A pair is left out by its HQ's address: the reason names the LQ."""
    try:
        yield
    except (ImageRejected, storage.UnreadableError) as error:
        raise ImageRejected(f"{error.reason} (LQ {file.uri})") from error


def check_pairs(
    pairs: Sequence[tuple[SourceFile, SourceFile]], checker: PairChecker, map_chunks: MapChunks
) -> dict[str, PlannedLq | Rejection]:
    """The LQ of each pair, or why it is left out, by the address of its HQ."""
    checks = chain.from_iterable(map_chunks(checker, chunked(pairs, _CHUNK)))
    return {
        hq.uri: result if isinstance(result, Rejection) else PlannedLq(lq, result)
        for (hq, lq), result in zip(pairs, checks, strict=True)
    }
