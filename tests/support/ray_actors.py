"""Processes of actors on the Ray cluster that this process has started, and on no other."""

from __future__ import annotations

import psutil


def ray_actors(kind: str) -> list[psutil.Process]:
    """Those whose title names the kind, such as `RayTrainWorker`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:  # ended meanwhile
            continue
        if kind in title:
            found.append(process)
    return found
