"""Keeps stderr to JSON lines, also what libraries, C code and child processes write there."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
from contextlib import suppress
from functools import cache

from training.monitoring.json_log import BEGIN, JsonLines, json_line

_END = b"\0end of the command\n"


@cache
def keep_stderr_json() -> None:
    """From now on every line on stderr is a JSON object, to the end of this process; what was none
    becomes the message of one."""
    real, (read_end, write_end) = os.dup(2), os.pipe()
    sys.stderr.flush()
    os.dup2(write_end, 2)
    os.close(write_end)
    thread = threading.Thread(target=_pass_on, args=(read_end, real), name="stderr", daemon=True)
    thread.start()
    # Warnings of libraries come as records, with their level.
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)

    def end() -> None:
        sys.stderr.flush()
        os.write(2, _END)  # not the end of the pipe: children may hold it longer
        thread.join()

    atexit.register(end)  # before those of libraries, so that it is called after them


def _pass_on(read_end: int, real: int) -> None:
    with os.fdopen(read_end, "rb") as lines:
        for line in lines:
            text = line.removesuffix(_END).decode(errors="replace").rstrip()
            if text:
                with suppress(OSError):  # nobody reads any more
                    os.write(real, f"{_object(text)}\n".encode())
            if line.endswith(_END):
                return


def _object(text: str) -> str:
    if text.startswith(BEGIN):
        with suppress(ValueError):  # torn by a line of another process
            json.loads(text)
            return text
    return json_line("info", text)
