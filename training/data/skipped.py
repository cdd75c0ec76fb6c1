"""Samples that could not be used: a list on disk, and the limit on their number.

Every worker keeps the same list; rank 0 writes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import FrozenModel
from training.run_dir.best_effort import best_effort

log = logging.getLogger(__name__)


class SkippedSample(FrozenModel):
    """A sample, or a whole shard, that was replaced by others."""

    shard: str
    index: int | None
    """Index of the sample in the shard; null for the whole shard."""
    key: str | None
    """The sample's key, if it could be read."""
    samples: int
    reason: str

    @property
    def place(self) -> tuple[str, int | None]:
        return self.shard, self.index

    def __str__(self) -> str:
        if self.index is None:
            return f"all {self.samples} samples of {self.shard}: {self.reason}"
        return f"sample {self.key or self.index} of {self.shard}: {self.reason}"


class SkippedList:
    """Samples skipped since this start of a stage; at most the fraction `limit` of all may be."""

    def __init__(self, path: Path, *, training_samples: int, limit: float) -> None:
        self.path = path
        self.training_samples = training_samples
        self.limit = limit
        self._found: dict[tuple[str, int | None], SkippedSample] = {}

    @property
    def samples(self) -> int:
        found = self._found.values()
        whole = {one.shard for one in found if one.index is None}
        return sum(one.samples for one in found if one.index is None or one.shard not in whole)

    def new_ones(self, found: Iterable[SkippedSample]) -> list[SkippedSample]:
        """Those not on the list yet, each once."""
        return list({one.place: one for one in found if one.place not in self._found}.values())

    def add(self, found: Iterable[SkippedSample], *, write: bool) -> None:
        """Adds them to the list, and to the file if `write`.

        Raises:
            FlowmapsrError: more samples are skipped than the limit allows; names the last one.
        """
        added = self.new_ones(found)
        if not added:
            return
        self._found |= {one.place: one for one in added}
        if write:
            for one in added:
                log.warning("sample skipped and replaced: %s", one)
            self._write()
        if self.samples > self.limit * self.training_samples:
            raise FlowmapsrError(
                f"{self.samples} of {self.training_samples} training samples cannot be used, but "
                f"max_bad_sample_fraction allows {self.limit:g} of them. Last one: {added[-1]}. "
                f"All are listed in {self.path}: check the dataset with 'flowmapsr dataset verify' "
                "and restore the shards, or raise max_bad_sample_fraction"
            )

    def _write(self) -> None:
        """Keeps the lines of earlier starts in the file, but only this start counts: the dataset
        may have been repaired."""
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        lines += [one.model_dump_json().encode() for one in self._found.values()]
        text = b"".join(line + b"\n" for line in dict.fromkeys(lines))
        with best_effort(str(self.path)):
            storage.write_bytes(str(self.path), text)
