"""A place in the dataset to the bytes of its sample: one short read of a shard checked once before.

Shards are read where they lie, on S3 through a cache on the local disk. Memory: 8 bytes for each
sample of the shards in use so far, and a piece of 4 MB for each shard that is being checked. May be
called from several threads. Knows no tensors.
"""

from __future__ import annotations

import logging
import threading

from datagen.dataset.records import ShardRecord
from datagen.dataset.shard_index import SampleBytes, ShardIndex, index_shard, sample_bytes
from datagen.dataset.shards import DamagedShard
from datagen.io import storage
from training.data.schedule import Place
from training.data.shard_cache import CacheUnusable, ShardCache

log = logging.getLogger(__name__)


class ShardStore:
    """Samples of one dataset."""

    def __init__(self, dataset: str, *, cache: ShardCache | None = None) -> None:
        """
        Args:
            cache: of shards on S3; without one every sample is a request.
        """
        self.dataset = dataset
        self.cache = cache if storage.is_remote(dataset) else None
        self._cache_takes_more = True
        self._found: dict[str, ShardIndex | str] = {}
        """What each shard checked so far was found to be: whole, or what is wrong with it."""
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def read(self, place: Place) -> SampleBytes:
        """The members of a sample.

        Raises:
            DamagedShard: the shard is not there or not as it was written, which is found at its
                first use, or the sample cannot be made out any more.
        """
        index = self.prepare(place.shard)
        extent = index.extent(place.index)
        data = self._read(place.shard, start=extent.start, length=extent.length)
        return sample_bytes(memoryview(data), uri=self._uri(place.shard))

    def fetch(self, shard: ShardRecord) -> None:
        """Checks a shard and has its copy in the cache, before its samples are wanted."""
        self.prepare(shard)
        if self.cache is not None:
            self._copy(shard)

    def prepare(self, shard: ShardRecord) -> ShardIndex:
        """Checks a shard, unless that is done; raises DamagedShard as `read` does."""
        found = self._found.get(shard.path)
        if found is None:
            with self._lock:
                lock = self._locks.setdefault(shard.path, threading.Lock())
            with lock:
                found = self._found.get(shard.path)
                if found is None:
                    found = self._found[shard.path] = self._check(shard)
        if isinstance(found, str):
            raise DamagedShard(found)
        return found

    def _check(self, shard: ShardRecord) -> ShardIndex | str:
        try:
            index = self._cached(shard)
            if index is None:
                index = self._index(shard, self._uri(shard))
        except (storage.NotFoundError, DamagedShard) as error:
            return str(error)
        if len(index) != shard.num_samples:
            return (
                f"{self._uri(shard)}: holds {len(index)} samples, and its manifest says "
                f"{shard.num_samples}"
            )
        return index

    def _cached(self, shard: ShardRecord) -> ShardIndex | None:
        """The index of a copy in the cache, made if need be; None where there can be none."""
        if self.cache is None:
            return None
        index = self._copy(shard)
        try:
            return index or self._index(shard, self.cache.path(shard))
        except storage.NotFoundError:  # no copy, or removed at this moment
            return None
        except DamagedShard as error:
            log.warning("%s; taken from %s once more", error, self._uri(shard))
            self.cache.remove(shard)
            return self._copy(shard)

    def _copy(self, shard: ShardRecord) -> ShardIndex | None:
        """Puts a shard into the cache; its index, or None when it was there or cannot be."""
        assert self.cache is not None
        if not self._cache_takes_more:
            return None
        try:
            return self.cache.add(self._uri(shard), shard)
        except CacheUnusable as error:
            with self._lock:
                first, self._cache_takes_more = self._cache_takes_more, False
            if first:
                log.warning(
                    "cache %s takes no more shards (%s): what is not there is read from S3 sample "
                    "by sample, which is slower; free some space or choose another cache_folder",
                    self.cache.folder,
                    error,
                )
            return None

    def _index(self, shard: ShardRecord, uri: str) -> ShardIndex:
        pieces = storage.read_pieces(uri, length=shard.bytes)
        return index_shard(pieces, uri=uri, sha256=shard.sha256)

    def _read(self, shard: ShardRecord, *, start: int, length: int) -> bytes:
        if self.cache is not None:
            self.cache.touch(shard)
            for _ in range(2):
                try:
                    return storage.read_range(self.cache.path(shard), start=start, length=length)
                except storage.NotFoundError:  # removed to make room, or never there
                    self._copy(shard)
        try:
            return storage.read_range(self._uri(shard), start=start, length=length)
        except storage.NotFoundError as error:
            raise DamagedShard(str(error)) from error

    def _uri(self, shard: ShardRecord) -> str:
        return storage.join(self.dataset, shard.path)
