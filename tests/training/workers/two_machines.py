"""`training.run` with workers that each report a different host name."""

from __future__ import annotations

import os
import sys

from training import distributed
from training.run import main

if __name__ == "__main__":
    distributed.host_name = lambda: f"machine-{os.environ['RANK']}"
    sys.exit(main())
