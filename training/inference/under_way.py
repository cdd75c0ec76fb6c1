"""How far an upscaling of many photos is, with the shares of those under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from training.inference.jobs import Job
from training.inference.watch import Watch


class PhotoShare(NamedTuple):
    """How far the work on one photo is."""

    share: float
    """From 0 to 1."""
    megapixels: float
    """Of the whole result."""


class UnderWay(NamedTuple):
    photos: tuple[str, ...]
    """Those under way; none between two, and where the only one was lost with its worker."""
    share: float
    """Of their work that is done, by megapixels."""
    done: float
    """Share of the work on all photos that is done, by the bytes of their files."""
    speed: float
    """Megapixels of results in a second."""


def watch_over(megapixels: float, tell: Callable[[PhotoShare], None]) -> Watch:
    """Over one photo, whose result has so many megapixels."""
    return Watch(lambda share: tell(PhotoShare(share, megapixels)))


class Meter:
    """Sums over the photos that are done and those under way."""

    def __init__(self, jobs: Sequence[Job], tell: Callable[[UnderWay], None]) -> None:
        self._tell, self._began = tell, time.monotonic()
        self._bytes = {job.source.uri: job.source.bytes for job in jobs}
        self._done_bytes, self._megapixels = 0, 0.0
        self._shares: dict[str, PhotoShare] = {}

    def reached(self, shares: Mapping[str, PhotoShare]) -> None:
        """These are all that are under way."""
        self._shares = dict(shares)
        part = sum(one.share * one.megapixels for one in shares.values())
        whole = sum(one.megapixels for one in shares.values())
        seconds = max(time.monotonic() - self._began, 1e-3)
        self._tell(
            UnderWay(
                tuple(shares),
                part / whole if whole else 0.0,
                self._done(),
                (self._megapixels + part) / seconds,
            )
        )

    def end(self, photo: str, megapixels: float) -> None:
        """This photo is done, with a result of so many."""
        self._done_bytes += self._bytes[photo]
        self._megapixels += megapixels
        self.reached({uri: one for uri, one in self._shares.items() if uri != photo})

    def _done(self) -> float:
        parts = [one.share * self._bytes[uri] for uri, one in self._shares.items()]
        return (self._done_bytes + sum(parts)) / max(1, sum(self._bytes.values()))
