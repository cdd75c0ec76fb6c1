"""Turns a dataset's or run's place into a short name for Prefect's pages, unique to that place.

Knows the characters that Prefect takes, not what lies there.
"""

from __future__ import annotations

import hashlib
import re


def place_name(location: str) -> str:
    """`/data/My Set` -> `my-set-1f0c2a9b`: lower case letters, digits and dashes only."""
    place = location.rstrip("/")
    last = place.rsplit("/", 1)[-1].lower()
    words = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:40].strip("-")
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    return f"{words}-{digest}" if words else digest
