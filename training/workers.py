"""Who trains together: the machines and devices of a stage's workers, told once at its start."""

from __future__ import annotations

import torch
import torch.distributed as dist

from training.provenance import host_name, processor_name
from training.records import Workers


def gather_workers(device: torch.device) -> Workers:
    """Every worker must call it, and hears of all."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else processor_name()
    mine = (host_name(), name)
    all_of_them = [mine] * dist.get_world_size()
    dist.all_gather_object(all_of_them, mine)
    hosts, devices = zip(*all_of_them, strict=True)
    return Workers(hosts=hosts, devices=devices, on_gpus=on_gpu)
