"""Samples that could not be used: a list on disk, and the limit on how many there may be.

Knows no files of the dataset; every worker keeps the same list, and the first one writes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import FrozenModel
from training.run_dir.best_effort import secondary

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"


class Skipped(FrozenModel):
    """One sample, or a whole shard, that others stand in for."""

    shard: str
    index: int | None
    """Of the sample inside the shard; null for all of it."""
    key: str | None
    """Of the sample, as far as it could be read."""
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
    """What a stage has skipped since it was started."""

    def __init__(self, home: Path, *, training_samples: int, limit: float) -> None:
        """
        Args:
            home: the stage's folder.
            limit: largest part of the training samples that may be skipped.
        """
        self.path = home / SKIPPED
        self.training_samples = training_samples
        self.limit = limit
        self._found: dict[tuple[str, int | None], Skipped] = {}

    @property
    def samples(self) -> int:
        found = self._found.values()
        whole = {one.shard for one in found if one.index is None}
        return sum(one.samples for one in found if one.index is None or one.shard not in whole)

    def news(self, found: Iterable[Skipped]) -> list[Skipped]:
        """Those that are not on the list, each once."""
        return list({one.place: one for one in found if one.place not in self._found}.values())

    def add(self, found: Iterable[Skipped], *, write: bool) -> None:
        """Puts them on the list, and on the disk if `write`.

        Raises FlowmapsrError, naming the last one, when the list is longer than the limit allows.
        """
        news = self.news(found)
        if not news:
            return
        self._found |= {one.place: one for one in news}
        if write:
            for one in news:
                log.warning("skipped, another sample stands in: %s", one)
            self._write()
        if self.samples > self.limit * self.training_samples:
            raise FlowmapsrError(
                f"{self.samples} of {self.training_samples} training samples cannot be used, and "
                f"max_rotten_fraction allows {self.limit:g} of them. Last one: {news[-1]}. They "
                f"are listed in {self.path}: find out more with 'flowmapsr dataset verify' and "
                "restore their shards, or raise max_rotten_fraction"
            )

    def _write(self) -> None:
        """What earlier starts have skipped stays on the disk, but only the present one counts:
        the dataset may have been mended."""
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        lines += [one.model_dump_json().encode() for one in self._found.values()]
        with secondary(str(self.path)):
            storage.write_bytes(
                str(self.path), b"".join(line + b"\n" for line in dict.fromkeys(lines))
            )
