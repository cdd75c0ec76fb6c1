"""SIGTERM as an exception, so that clean-up runs as it does on Ctrl-C."""

from __future__ import annotations


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM."""
