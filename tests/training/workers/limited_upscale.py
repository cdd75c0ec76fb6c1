"""Upscales a photo where memory has a limit, and writes how that ended: MODEL PHOTO TARGET LARGEST
MEGABYTES RESULT, of which LARGEST is the number of pixels of the largest result held whole."""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path

import numpy as np
import psutil
import torch

from training.inference import enlarger
from training.inference.batch import upscale_all
from training.inference.files import UpscaleSettings
from training.inference.jobs import plan_jobs
from training.inference.upscaler import Upscaler


def main(model: str, photo: str, target: str, largest: str, megabytes: str, result: str) -> None:
    torch.set_num_threads(1)
    upscaler = Upscaler.from_pretrained(model, device="cpu", tile=256)
    upscaler.upscale(np.zeros((64, 64, 3), np.uint8), scale=2)  # loads what is loaded once
    enlarger.LARGEST_WHOLE = int(largest)
    limit = _data_bytes() + (int(megabytes) << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before = psutil.Process().memory_info().rss
    jobs = plan_jobs(photo, target, overwrite=True, skip_existing=False).jobs
    report = upscale_all(jobs, upscaler, UpscaleSettings(scale=4, steps=1))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20
    Path(result).write_text(json.dumps({"failed": report.failed, "grown": grown}))


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA."""
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
