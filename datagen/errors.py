"""The one error that is meant for the user: what happened, where, and what to do about it."""

from __future__ import annotations


class FlowmapsrError(Exception):
    """A failure the user can act on; the command line prints its text and ends with exit code 1."""
