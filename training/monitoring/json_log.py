"""Messages and logs as JSON lines, where `--log-format json` asks for them: an object a line, with
time, level, message, and the run, stage and dataset that this process is at work on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime

FORMAT = "FLOWMAPSR_LOG_FORMAT"
"""The variable: `text` or `json`. The option sets it, for children and workers too."""
BEGIN = '{"time": "'
_work: dict[str, str | None] = {"run": None, "stage": None, "dataset": None}


def json_wanted() -> bool:
    return os.environ.get(FORMAT) == "json"


def at_work_on(**parts: str) -> None:
    """Names the `run`, `stage` or `dataset` of all lines from now on."""
    _work.update(parts)


def json_line(
    level: str, message: str, more: Mapping[str, object] | None = None, *, at: float | None = None
) -> str:
    """A line without its end; `at` is its time, in seconds since the epoch, else now."""
    when = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    begin = {"time": when.isoformat(timespec="milliseconds"), "level": level, "message": message}
    return json.dumps({**begin, **_work, **(more or {})}, ensure_ascii=False)


def tell(text: str, *, level: str = "info", **more: object) -> None:
    """Prints a message on stderr; `more` is for programs that read the JSON."""
    line = json_line(level, text, more) if json_wanted() else text
    print(line, file=sys.stderr, flush=True)


class JsonLines(logging.Formatter):
    """A record as a line, with its logger, and its traceback if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        more = {"logger": record.name}
        if record.exc_info:
            more["traceback"] = self.formatException(record.exc_info)
        level, message = record.levelname.lower(), record.getMessage()
        return json_line(level, message, more, at=record.created)


def chosen(text: logging.Formatter) -> logging.Formatter:
    """This formatter, or that of JSON lines where they are asked for."""
    return JsonLines() if json_wanted() else text
