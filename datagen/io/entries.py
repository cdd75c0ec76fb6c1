"""What a listing says about one file: where it is, how long, and a mark that changes with it.

Knows neither disks nor S3.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as listed, not opened.

    `stamp` tells a changed file from an unchanged one of equal length: the time of its last change
    in nanoseconds on a disk, the ETag on S3.
    """

    uri: str
    bytes: int
    stamp: str
