"""Comparisons of folders."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
