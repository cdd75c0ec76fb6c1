"""`training.run` with workers of two machines: one has other code, and its clock is ahead."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace

from training import distributed
from training.run import main

if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    distributed.host_name = lambda: f"machine-{rank}"
    distributed.code_version = lambda: f"0.{rank}.0"
    vars(distributed)["time"] = SimpleNamespace(time=lambda: time.time() + 60 * rank)
    sys.exit(main())
