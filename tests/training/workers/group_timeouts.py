"""A worker that joins the others as under a watchdog of so many seconds, and writes how long each
of its groups waits; words: these seconds, and the file for the results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.engine.engine import start_distributed
from training.monitoring.watchdog import connection_timeout


def main(watchdog_seconds: float, results: Path) -> None:
    from deepspeed.utils.groups import _clone_world_group

    device = torch.device("cpu")
    start_distributed(device, timeout=connection_timeout(watchdog_seconds))
    groups: dict[str, Any] = {"workers": dist.group.WORLD, "gradients": _clone_world_group()}
    found = {
        name: group._get_backend(device).options._timeout.total_seconds()
        for name, group in groups.items()
    }
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
