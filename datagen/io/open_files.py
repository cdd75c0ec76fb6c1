"""How many files this process and those that it starts may have open at once."""

from __future__ import annotations

import contextlib
import resource

from datagen.errors import FlowmapsrError

ENOUGH = 65_536
"""What Ray raises its own processes to."""
LEAST = 512
"""Fewer end a training on one machine somewhere in its start, each time elsewhere."""


def raise_limit() -> None:
    """Raises the limit as far as this user may, up to `ENOUGH`; many shells start with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # forbidden here: then it stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_limit() -> None:
    """Raises `FlowmapsrError` where Ray, Prefect and MLflow cannot work together."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST:
        raise FlowmapsrError(
            f"a process may have only {soft} files open here, too few for Ray, Prefect and MLflow: "
            "raise the limit (ulimit -n 4096; LimitNOFILE=4096 in a systemd unit, --ulimit "
            "nofile=4096 of a container)"
        )
