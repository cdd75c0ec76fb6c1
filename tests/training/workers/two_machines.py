"""`training.run` whose workers take themselves for machines of their own, sampled often."""

from __future__ import annotations

import os
import sys
from functools import partial

from training import distributed, stage
from training.monitoring.system_metrics import sampled_system
from training.run import main

if __name__ == "__main__":
    distributed.host_name = lambda: f"machine-{os.environ['RANK']}"
    stage.sampled_system = partial(sampled_system, seconds=0.3)
    sys.exit(main())
