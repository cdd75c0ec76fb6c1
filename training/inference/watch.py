"""Tells how far an upscaling is, and stops it between two tiles when that is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from datagen.errors import FlowmapsrError

OnProgress = Callable[[float], None]
"""Called with the share that is done, from 0 to 1."""


class UpscalingStopped(FlowmapsrError):
    """It was asked to stop; nothing was written."""


class Watch:
    """Counts the work on pictures: the passes of the network, and one more for all the rest."""

    def __init__(
        self,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        *,
        pictures: int = 1,
    ) -> None:
        """
        Args:
            on_progress: never called with less than before; what it raises ends the work.
            cancel: once it is set, by any thread, the work ends before its next tile.
            pictures: that are done one after the other.
        """
        self._on_progress, self._cancel, self._pictures = on_progress, cancel, pictures
        self._before, self._steps, self._step = 0, 1, 0
        self._told = -1.0

    def begin(self, steps: int) -> None:
        """A picture's work begins, with `steps` evaluations of the network."""
        self._steps, self._step = steps, 0
        self.part(0)

    def part(self, share: float) -> None:
        """This share of the evaluation under way is done.

        Raises:
            UpscalingStopped: that is asked for.
        """
        self._tell(self._before + (self._step + share) / (self._steps + 1))

    def step(self) -> None:
        """One more evaluation is done. Raises as `part`."""
        self._step = min(self._step + 1, self._steps)
        self.part(0)

    def end(self) -> None:
        """The picture is done."""
        self._before += 1
        self._tell(self._before)

    def _tell(self, pictures: float) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise UpscalingStopped("upscaling was asked to stop; nothing of it was written")
        share = min(1.0, pictures / self._pictures)
        if self._on_progress is not None and share > self._told:
            self._told = share
            self._on_progress(share)
