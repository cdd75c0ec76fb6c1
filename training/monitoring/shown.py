"""How a person is shown what is logged: the same plain lines under every launcher."""

from __future__ import annotations

import logging


class Shown(logging.Formatter):
    """The message; what is more than a piece of news begins with its level."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return level + super().format(record)
