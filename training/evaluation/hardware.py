"""What restores pictures here, for people who read its seconds."""

from __future__ import annotations

import platform

import torch


def hardware() -> str:
    """Name of the GPU, or the kind of CPU and its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"a CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"
