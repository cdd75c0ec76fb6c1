"""Copies of S3 shards on a node's disk, shared by all its processes and bounded in size.

A copy is named after the SHA-256 of its bytes and exists only when complete and checked, so one
folder can serve many datasets and runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from datagen.dataset.manifest import Dataset
from datagen.dataset.records import ShardRecord
from datagen.dataset.shard_index import ShardIndex, index_shard
from datagen.errors import FlowmapsrError
from datagen.io import storage
from training.data.bucket_mix import BucketShare
from training.settings.recipe import TrainingRecipe

_WHOLE, _PARTIAL, _LOCK = ".tar", ".part", "lock"
_TOUCH_SECONDS = 20.0


class CacheUnusable(Exception):
    """No shard can be added: the disk is full, or the folder is not writable."""


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turns an OSError, which only the cache's own files can raise, into CacheUnusable."""
    try:
        yield
    except OSError as error:
        raise CacheUnusable(str(error)) from error


def recipe_cache(recipe: TrainingRecipe) -> ShardCache | None:
    """The cache of a recipe; all processes of a node share it."""
    if recipe.cache_gb == 0:
        return None
    temporary = Path(tempfile.gettempdir()) / f"flowmapsr-cache-{os.getuid()}"
    folder = Path(recipe.cache_dir) if recipe.cache_dir else temporary
    return ShardCache(folder, limit=round(recipe.cache_gb * 1e9))


def check_cache(
    recipe: TrainingRecipe, datasets: Sequence[Dataset], shares: Iterable[BucketShare]
) -> None:
    """Refuses a cache so small that the same shards would be downloaded over and over.

    Training reads from one window of every bucket of a dataset, and from two at their border.

    Raises:
        FlowmapsrError: the cache cannot hold these windows.
    """
    buckets = {share.bucket for share in shares}
    sizes: dict[tuple[str, str], list[int]] = {}
    for manifest, root in datasets:
        for shard in manifest.shards:
            if storage.is_remote(root) and shard.split == "train" and shard.bucket in buckets:
                sizes.setdefault((root, shard.bucket), []).append(shard.bytes)
    if recipe.cache_gb == 0 or not sizes:
        return
    windows = [sum(sorted(one)[-recipe.shuffle_window_shards :]) for one in sizes.values()]
    needed = sum(windows) + max(windows)
    if needed > recipe.cache_gb * 1e9:
        what = "this dataset" if len(datasets) == 1 else "these datasets"
        whose = "its" if len(datasets) == 1 else "their"
        raise FlowmapsrError(
            f"cache_gb {recipe.cache_gb:g} is too small for {what}: windows of "
            f"{recipe.shuffle_window_shards} shards (shuffle_window_shards) of {whose} "
            f"{len(windows)} buckets need {needed / 1e9:.3g} GB. Increase it, lower "
            "shuffle_window_shards, or set cache_gb=0 to read every sample from S3"
        )


class ShardCache:
    """The folder of copies: at most `limit` bytes, including unfinished downloads; the least
    recently used ones are evicted."""

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._touched: dict[str, float] = {}

    def path(self, shard: ShardRecord) -> str:
        """The path of a shard's copy. It may be removed at any time; a file that is open can still
        be read."""
        return str(self.folder / f"{shard.sha256}{_WHOLE}")

    def touch(self, shard: ShardRecord) -> None:
        """Marks a shard as used, at most once every few seconds."""
        now = time.monotonic()
        if now - self._touched.get(shard.sha256, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[shard.sha256] = now
            _note_use(self.path(shard))

    @_os_errors()
    def add(self, uri: str, shard: ShardRecord) -> ShardIndex | None:
        """Copies a shard if it is not cached; of all processes that need it, one downloads.

        Returns:
            The index made while copying; None if a copy existed.

        Raises:
            CacheUnusable: the disk is full, or the folder is not writable.
            DamagedShard: the object at `uri` is not the shard; no copy is kept.
        """
        partial = self.folder / f"{shard.sha256}{_PARTIAL}"
        while True:
            if os.path.exists(self.path(shard)):
                self.touch(shard)
                return None
            with self._locked(partial) as stream:
                if not _is_named(stream, partial):
                    continue  # another process finished or abandoned the download
                try:
                    if os.path.exists(self.path(shard)):
                        # Finished after we looked: opening `partial` made a new, empty file.
                        partial.unlink(missing_ok=True)
                        continue
                    index = self._copy(uri, shard, stream)
                    _note_use(partial)
                    if not _is_named(stream, partial):
                        continue  # the folder was cleared meanwhile
                    os.replace(partial, self.path(shard))
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
                return index

    def remove(self, shard: ShardRecord) -> None:
        """Removes a copy that turned out to be damaged."""
        Path(self.path(shard)).unlink(missing_ok=True)

    def _copy(self, uri: str, shard: ShardRecord, stream: IO[bytes]) -> ShardIndex:
        self._reserve(stream, shard.bytes)
        pieces = _written(storage.read_pieces(uri, length=shard.bytes), stream)
        index = index_shard(pieces, uri=uri, sha256=shard.sha256)
        stream.flush()
        return index

    def _reserve(self, stream: IO[bytes], size: int) -> None:
        """Gives a file its final size, evicting the oldest copies as needed."""
        with self._locked(self.folder / _LOCK):
            stream.truncate(0)
            copies = sorted(_copies(self.folder))
            total = sum(bytes_ for _, bytes_, _ in copies)
            for _, bytes_, path in copies:
                if total + size <= self.limit:
                    break
                if _removed(path):
                    total -= bytes_
            stream.truncate(size)
            stream.seek(0)

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[IO[bytes]]:
        """The file, created if missing, locked against all other processes and threads; the lock of
        a process that dies is released."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream


def _copies(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Last use, bytes and path of every copy, including unfinished downloads."""
    for path in folder.iterdir():
        if path.suffix in (_WHOLE, _PARTIAL):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path


def _note_use(path: str | Path) -> None:
    """Sets a copy's date to now; the system's own dates may repeat for some milliseconds."""
    now = time.time_ns()
    with contextlib.suppress(OSError):  # it may have been removed
        os.utime(path, ns=(now, now))


def _written(pieces: Iterable[bytes], stream: IO[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        stream.write(piece)
        yield piece


def _is_named(stream: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Removes a complete copy, or one whose writer has died; returns whether it did."""
    if path.suffix == _WHOLE:
        path.unlink(missing_ok=True)
        return True
    try:
        with open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_named(stream, path):
                return False  # it was just completed
            path.unlink()  # before the lock is released: the next holder must see that it is gone
    except OSError:
        return False
    return True
