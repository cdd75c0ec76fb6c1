"""Reads single samples of a dataset: one short read from a shard that is checked at its first use.

Shards are read in place, on S3 through a cache on the local disk. Memory: 8 bytes per sample of the
shards used so far, and 4 MB for each shard that is being checked. Thread-safe.
"""

from __future__ import annotations

import logging
import threading

from datagen.dataset.records import ShardRecord
from datagen.dataset.shard_index import ShardIndex, index_shard, sample_bytes
from datagen.dataset.shards import DamagedShard, ShardSample
from datagen.io import storage
from training.data.planned import SampleLocation
from training.data.shard_cache import CacheUnusable, ShardCache

log = logging.getLogger(__name__)


class ShardStore:
    """Samples of one dataset; without a cache, every sample on S3 is a request."""

    def __init__(self, dataset: str, *, cache: ShardCache | None = None) -> None:
        self.dataset = dataset
        self.cache = cache if storage.is_remote(dataset) else None
        self._cache_usable = True
        self._found: dict[str, ShardIndex | str] = {}
        """Checked shards: the index, or what is wrong."""
        self._stamps: dict[str, str] = {}
        """Of those that are read in place: one that is another file now is checked again."""
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def read(self, location: SampleLocation) -> ShardSample:
        """The members of a sample.

        Raises:
            DamagedShard: the shard is missing or differs from its record (found at its first use),
                or the sample cannot be parsed.
        """
        index = self.prepare(location.shard)
        start, length = index.extent(location.index)
        try:
            data = self._read(location.shard, start=start, length=length)
        except storage.ChangedError:
            self._check_again(location.shard)
            data = self._read(location.shard, start=start, length=length)
        return sample_bytes(data, uri=self._uri(location.shard))

    def fetch(self, shard: ShardRecord) -> None:
        """Checks a shard and caches it before its samples are needed."""
        self.prepare(shard)
        if self.cache is not None:
            self._copy(shard)

    def prepare(self, shard: ShardRecord) -> ShardIndex:
        """Checks a shard once; raises DamagedShard as `read` does."""
        with self._lock_of(shard):
            if shard.path not in self._found:
                self._found[shard.path] = self._check(shard)
        found = self._found[shard.path]
        if isinstance(found, str):
            raise DamagedShard(found)
        return found

    def _check_again(self, shard: ShardRecord) -> None:
        """Of a file that was replaced; raises DamagedShard unless it is the same after all."""
        with self._lock_of(shard):
            self._found[shard.path] = self._check(shard)
            # Else its stamp says nothing, as on some file systems.
            self._stamps.pop(shard.path, None)
        self.prepare(shard)

    def _lock_of(self, shard: ShardRecord) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(shard.path, threading.Lock())

    def _check(self, shard: ShardRecord) -> ShardIndex | str:
        try:
            index = self._cached(shard) or self._in_place(shard)
        except (storage.NotFoundError, DamagedShard) as error:
            return str(error)
        if len(index) != shard.num_samples:
            has, should = f"has {len(index)} samples", f"its manifest says {shard.num_samples}"
            return f"{self._uri(shard)}: {has}, but {should}"
        return index

    def _in_place(self, shard: ShardRecord) -> ShardIndex:
        found = storage.entry(self._uri(shard))
        index = self._index(shard, self._uri(shard))
        if found is not None:
            self._stamps[shard.path] = found.stamp
        return index

    def _cached(self, shard: ShardRecord) -> ShardIndex | None:
        """The index of a cached copy, made if missing; None without a usable cache."""
        if self.cache is None:
            return None
        index = self._copy(shard)
        try:
            return index or self._index(shard, self.cache.path(shard))
        except storage.NotFoundError:  # no copy, or removed at this moment
            return None
        except DamagedShard as error:
            log.warning("%s; downloading %s again", error, self._uri(shard))
            self.cache.remove(shard)
            return self._copy(shard)

    def _copy(self, shard: ShardRecord) -> ShardIndex | None:
        """Caches a shard; returns its index, or None if it was cached already or cannot be."""
        assert self.cache is not None
        if not self._cache_usable:
            return None
        try:
            return self.cache.add(self._uri(shard), shard)
        except CacheUnusable as error:
            with self._lock:
                first, self._cache_usable = self._cache_usable, False
            if first:
                log.warning(
                    "cache %s is full or unwritable (%s): reading single samples from S3, which is "
                    "slower; free some space or choose another cache_dir",
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
                except storage.NotFoundError:  # evicted, or never cached
                    self._copy(shard)
        try:
            stamp = self._stamps.get(shard.path)
            return storage.read_range(self._uri(shard), start=start, length=length, stamp=stamp)
        except storage.NotFoundError as error:
            raise DamagedShard(str(error)) from error

    def _uri(self, shard: ShardRecord) -> str:
        return storage.join(self.dataset, shard.path)
