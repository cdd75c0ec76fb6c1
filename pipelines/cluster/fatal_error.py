"""What ended a run for good, from the worker that knows it to the launcher that tells it.

Its room on the disk is taken when the run starts: a full disk is what a run may have to end of.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from datagen.io import storage

FAILURE, ROOM = "failure.txt", ".failure.room"
BYTES = 4096


class LastWord:
    """The failure of one run, seen by all its workers."""

    def __init__(self, run: Path) -> None:
        self._told, self._room = run / FAILURE, run / ROOM

    def begin(self) -> None:
        """Forgets the last start's and makes room for this one's. Raises FlowmapsrError."""
        self._told.unlink(missing_ok=True)
        storage.write_bytes(str(self._room), b" " * BYTES)

    def tell(self, text: str) -> None:
        """Of several workers that tell, the first one is heard."""
        words = text.encode()[:BYTES].decode(errors="ignore").encode().ljust(BYTES)
        with suppress(FileNotFoundError):  # told already
            with self._room.open("r+b", buffering=0) as file:
                file.write(words)
            os.replace(self._room, self._told)

    def told(self) -> str:
        """What was told, or nothing."""
        try:
            return self._told.read_text().strip()
        except FileNotFoundError:
            return ""

    def end(self) -> None:
        """Gives the room back."""
        self._room.unlink(missing_ok=True)
