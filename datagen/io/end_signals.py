"""The signals that ask a process to end in an orderly way."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from types import FrameType

END_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
"""`kill`, a dropped connection, Slurm's warning before the time limit, a limit of CPU time."""


def on_end_signal(act: Callable[[], None]) -> None:
    """Calls `act` at the first of the signals, in the main thread, which must call this.

    The ones after it change nothing: a dropped connection sends two, and Slurm SIGTERM after its
    warning. Those that are ignored stay ignored, as under `nohup`.
    """
    ours = [one for one in END_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]

    def first(number: int, frame: FrameType | None) -> None:
        for one in ours:
            signal.signal(one, _again)
        if number == signal.SIGHUP:
            _leave_terminal()
        act()

    for one in ours:
        signal.signal(one, first)


def _again(number: int, frame: FrameType | None) -> None:
    pass  # not SIG_IGN, which programs started from now on would inherit


def _leave_terminal() -> None:
    """Output to a terminal that is gone would fail, and with it what is saved now."""
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream)
            os.close(nothing)
