"""`training.run` whose workers take themselves for machines of their own, sampled often."""

from __future__ import annotations

import os
import sys
from functools import partial

from training import stages, workers
from training.run import main
from training.system_metrics import sampled_system

if __name__ == "__main__":
    workers.host_name = lambda: f"machine-{os.environ['RANK']}"
    stages.sampled_system = partial(sampled_system, seconds=0.3)
    sys.exit(main())
