"""What machines that work together must have in common: the code, and nearly the time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from datagen.errors import FlowmapsrError

log = logging.getLogger(__name__)

PACKAGES = ("datagen", "training", "pipelines")
CLOCK_SECONDS = 10.0
"""By which clocks may differ: locks, progress and logs hold times of several machines, and S3
refuses requests that are minutes old."""


@cache
def code_version() -> str:
    """`0.1.0 (code 3fa94c21)`: the version, and the beginning of a digest of all Python files,
    which tells apart what has the same number."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    try:
        number = version("flowmapsr")
    except PackageNotFoundError:
        number = "not installed"
    return f"{number} (code {digest.hexdigest()[:8]})"


def require_same_code(found: Mapping[str, str], *, here: str) -> None:
    """Compares the versions of machines, by name, with that of the machine called `here`.

    Raises:
        FlowmapsrError: one has another; names both.
    """
    others = [f"{name} has {its}" for name, its in found.items() if its != found[here]]
    if others:
        raise FlowmapsrError(
            f"flowmapsr is not the same on all machines: {here} has {found[here]}, but "
            f"{', '.join(others)}; install the same on all, and start again what runs there"
        )


def warn_of_clocks(ahead: Mapping[str, float]) -> None:
    """Warns of the machines whose clocks are so many seconds ahead (or, negative, behind)."""
    wrong = [f"{name} by {by:+.0f} s" for name, by in ahead.items() if abs(by) > CLOCK_SECONDS]
    if wrong:
        log.warning("clocks differ from this machine's: %s; set them (NTP)", ", ".join(wrong))
