"""How far an upscaling of many photos is, with the shares of those under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from training.inference.watch import Watch


class PhotoShare(NamedTuple):
    """How far the work on one photo is."""

    share: float
    """From 0 to 1."""
    megapixels: float
    """Of the whole result."""


class UnderWay(NamedTuple):
    photos: tuple[str, ...]
    """Those under way; none where the only one was lost with its worker."""
    share: float
    """Of their work that is done, by megapixels."""
    done: float
    """Photos that are done, and the shares of those under way; the last one may still be
    written."""
    speed: float
    """Megapixels of results in a second."""


def watch_over(megapixels: float, tell: Callable[[PhotoShare], None]) -> Watch:
    """Over one photo, whose result has so many megapixels."""
    return Watch(lambda share: tell(PhotoShare(share, megapixels)))


class Meter:
    """Sums over the photos that are done."""

    def __init__(self, tell: Callable[[UnderWay], None]) -> None:
        self._tell, self._began = tell, time.monotonic()
        self._photos, self._megapixels = 0, 0.0

    def reached(self, shares: Mapping[str, PhotoShare]) -> None:
        """Tells about these, which are all that are under way."""
        part = sum(one.share * one.megapixels for one in shares.values())
        whole = sum(one.megapixels for one in shares.values())
        seconds = max(time.monotonic() - self._began, 1e-3)
        self._tell(
            UnderWay(
                tuple(shares),
                part / whole if whole else 0.0,
                self._photos + sum(one.share for one in shares.values()),
                (self._megapixels + part) / seconds,
            )
        )

    def end(self, megapixels: float) -> None:
        """A photo is done, with a result of so many."""
        self._photos += 1
        self._megapixels += megapixels
