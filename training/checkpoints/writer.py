"""Writes a worker's share of a checkpoint to files, in a thread while training continues.

Each worker writes its files, then a record that lists them; the first worker's thread waits for the
records of all and commits. The threads communicate only through the storage, and rename nothing,
so that disks and S3 work the same.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.samples.weights import not_finite
from training.checkpoints.records import COMMIT, Commit, FileRecord, Share, TrainerState
from training.checkpoints.tensor_files import safetensors_chunks

FIRST_POLL = 0.05
LONGEST_POLL = 2.0
"""Seconds between checks for the records of the other workers."""
_FILES = TypeAdapter(tuple[FileRecord, ...])
"""Of a worker's record: the files that it has written."""


@dataclass(frozen=True)
class Writer:
    """One worker of one attempt at a stage."""

    rank: int
    world_size: int
    attempt: str
    """Random, and shared by the workers of one launch: files of an earlier launch have another."""

    def record_name(self, rank: int) -> str:
        return f"share-{self.attempt}-{rank:05d}.json"

    def file_name(self, part: str) -> str:
        """The name of this worker's file for a network or a text."""
        stem, _, suffix = part.partition(".")
        return f"{stem}-{self.attempt}-{self.rank:05d}.{suffix or 'safetensors'}"


class Writing:
    """A checkpoint that is being written."""

    def __init__(
        self,
        writer: Writer,
        folder: str,
        share: Share,
        state: TrainerState,
        on_commit: Callable[[Commit], None],
    ) -> None:
        """Starts writing; `on_commit` is called in the first worker's thread."""
        self.folder = folder
        self.step = state.step
        self._writer = writer
        self._state = state
        self._on_commit = on_commit
        self._share: Share | None = share
        self._shared = threading.Event()
        self._abandoned = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(
            target=self._run, name=f"checkpoint-{state.step}", daemon=True
        )
        self._thread.start()

    def wait_for_share(self) -> str:
        """Waits until this worker has written its files; returns the problem, or nothing."""
        self._shared.wait()
        return self._problem

    def wait_for_commit(self, timeout: float | None = None) -> str:
        """Waits for the thread, which commits on the first worker; returns the problem.

        After `timeout` seconds the first worker stops waiting for the other workers' records.
        """
        self._thread.join(timeout)
        self._abandoned.set()
        self._thread.join()
        return self._problem

    def _run(self) -> None:
        try:
            assert self._share is not None
            self._write_share(self._share)
            self._share = None  # frees its memory before waiting for the others
            self._shared.set()
            if self._writer.rank == 0:
                self._commit()
        except Exception as error:  # a thread: `wait_for_*` return it to the caller
            self._problem = str(error) or repr(error)
        finally:
            self._share = None
            self._shared.set()

    def _write_share(self, share: Share) -> None:
        networks, texts = share.networks.items(), share.texts.items()
        for part, tensors in networks:
            _check_finite(part, tensors)
        files = [self._write(part, safetensors_chunks(tensors)) for part, tensors in networks]
        files += [self._write(part, [data]) for part, data in texts]
        uri = storage.join(self.folder, self._writer.record_name(self._writer.rank))
        storage.write_bytes(uri, _FILES.dump_json(tuple(files)))

    def _write(self, part: str, chunks: Iterable[bytes | memoryview]) -> FileRecord:
        name = self._writer.file_name(part)
        digest, size = hashlib.sha256(), 0
        with storage.open_atomic(storage.join(self.folder, name)) as stream:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        sha256, rank = digest.hexdigest(), self._writer.rank
        return FileRecord(part=part, writer=rank, name=name, bytes=size, sha256=sha256)

    def _commit(self) -> None:
        if not self._wait_for_all():
            return
        files: tuple[FileRecord, ...] = ()
        for rank in range(self._writer.world_size):
            uri = storage.join(self.folder, self._writer.record_name(rank))
            files += _FILES.validate_json(storage.read_bytes(uri))
        commit = Commit.of(self._state, files)
        uri = storage.join(self.folder, COMMIT)
        storage.write_bytes(uri, commit.model_dump_json(indent=2).encode())
        self._on_commit(commit)

    def _wait_for_all(self) -> bool:
        """Waits for the records of all workers; False if abandoned."""
        pause = FIRST_POLL
        wanted = {self._writer.record_name(rank) for rank in range(self._writer.world_size)}
        while not wanted <= set(storage.names(self.folder, f"share-{self._writer.attempt}-")):
            if self._abandoned.wait(pause):
                return False
            pause = min(2 * pause, LONGEST_POLL)
        return True


def _check_finite(part: str, tensors: Mapping[str, Tensor]) -> None:
    """A state that diverged since the last loss must not replace the checkpoint before it."""
    for name, tensor in tensors.items():
        if found := not_finite(name, tensor):
            raise FlowmapsrError(f"{found} in {part}: training has diverged")
