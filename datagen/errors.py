"""Errors for the user: what happened, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FlowmapsrError(Exception):
    """A failure the user can act on; the command line prints its text and ends with exit code 1."""

    details: Mapping[str, Any] = {}
    """What `--json` prints beside the text."""


class UnreadableError(FlowmapsrError):
    """One file or folder cannot be used, which says nothing of others beside it."""

    def __init__(self, message: str, reason: str = "missing") -> None:
        super().__init__(message)
        self.reason = reason
        """Short and stable, for counting."""


class NoServerError(FlowmapsrError):
    """No server answers at an address, which says nothing of what is there."""


class NotFoundError(UnreadableError):
    """There is nothing at the URI."""


class ChangedError(FlowmapsrError):
    """The file at the URI is not the one that was looked at before."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
