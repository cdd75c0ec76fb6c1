"""Says on stderr what a command does and what is logged: no command is silent for long.

A step is named once it has lasted a second, and again after every ten seconds without a word.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipelines.terminal.text import duration
from training.monitoring.json_log import chosen, tell
from training.monitoring.shown import Shown

PACKAGES = ("datagen", "training", "pipelines")
FIRST_SECONDS, SILENT_SECONDS = 1.0, 9.5


class _Speaker:
    def __init__(self) -> None:
        self.begin("reading the settings")
        self.quiet = False
        """Whether there is nothing to say: a bar shows the progress, or a page is served."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="doing", daemon=True)
        self._thread.start()

    def begin(self, what: str) -> None:
        self.what, self.since, self.said = what, time.monotonic(), 0.0

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _speak(self) -> None:
        while not self._ended.wait(0.25):
            now = time.monotonic()
            lasted, silent = now - self.since, now - (self.said or self.since)
            if self.quiet or silent < (SILENT_SECONDS if self.said else FIRST_SECONDS):
                continue
            after = f" ({duration(lasted)})" if self.said else ""
            self.said = now
            with suppress(OSError):  # nobody reads any more
                tell(f"{self.what} ...{after}")


class _LogLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # nobody reads any more
            # Not a stream kept from before: above a bar, rich puts another one here.
            print(self.format(record), file=sys.stderr, flush=True)
        said_something()


_speaker: _Speaker | None = None


@contextmanager
def speaking() -> Iterator[None]:
    """Speaks for the length of the block, which is one command."""
    global _speaker
    _speaker = _Speaker()
    try:
        yield
    finally:
        _speaker.end()
        _speaker = None


@contextmanager
def log_shown() -> Iterator[None]:
    """Shows what our packages log as plain lines, for the length of the block."""
    lines = _LogLines()
    lines.setFormatter(chosen(Shown()))
    loggers = [logging.getLogger(name) for name in PACKAGES]
    for logger in loggers:
        logger.addHandler(lines)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # Prefect would show it again
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(lines)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True


def doing(what: str) -> None:
    """The command begins a step. Does nothing where the work is not a command's."""
    if _speaker is not None:
        _speaker.begin(what)


def said_something() -> None:
    """A line of progress was printed."""
    if _speaker is not None:
        _speaker.said = time.monotonic()


@contextmanager
def says_nothing() -> Iterator[None]:
    """For the length of the block: a bar moves, which lines would tear, or a page is served."""
    if _speaker is None:
        yield
        return
    _speaker.quiet = True
    try:
        yield
    finally:
        said_something()
        _speaker.quiet = False
