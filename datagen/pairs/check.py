"""Reads and registers pairs, a chunk of them in one call, so that a cluster can map it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from datagen.io import storage
from datagen.pairs.registration import Registration, register, size_fault
from datagen.photos.decode import ImageRejected, load_image, upright_photo
from datagen.photos.source_file import Rejection, SourceFile, read_photo
from datagen.settings import ImageSettings

_THREADS = 2  # each holds two decoded pictures


@dataclass(frozen=True)
class PairChecker:
    """How each pair of HQ and LQ of a chunk is registered, in its order; or why it is left out."""

    images: ImageSettings
    tolerance: float
    """Largest offset, HQ pixels."""

    def __call__(
        self, chunk: Sequence[tuple[SourceFile, SourceFile]]
    ) -> list[Registration | Rejection]:
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(self._check, chunk))

    def _check(self, pair: tuple[SourceFile, SourceFile]) -> Registration | Rejection:
        pictures = []
        for file in pair:
            picture = self._read(file)
            if isinstance(picture, Rejection):
                return picture
            pictures.append(picture)
        hq, lq = pictures
        fault = size_fault(hq=(hq.shape[1], hq.shape[0]), lq=(lq.shape[1], lq.shape[0]))
        if fault is None:
            found = register(hq, lq)
            fault = found.fault(tolerance=self.tolerance)
        return found if fault is None else Rejection(pair[0].uri, fault)

    def _read(self, file: SourceFile) -> np.ndarray | Rejection:
        try:
            return upright_photo(load_image(read_photo(file), self.images), self.images)
        except (ImageRejected, storage.UnreadableError) as error:
            return Rejection(file.uri, error.reason)
