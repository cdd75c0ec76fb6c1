"""Who trains together: the machines and devices of a stage's workers, told once at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist

from training.provenance import host_name, processor_name


@dataclass(frozen=True)
class Workers:
    """All workers of a stage, in order of rank."""

    hosts: tuple[str, ...]
    devices: tuple[str, ...]

    @classmethod
    def gathered(cls, device: torch.device) -> Self:
        """Every worker must call it, and hears of all."""
        mine = (host_name(), device_name(device))
        all_of_them = [mine] * dist.get_world_size()
        dist.all_gather_object(all_of_them, mine)
        hosts, devices = zip(*all_of_them, strict=True)
        return cls(hosts, devices)

    def tags(self) -> dict[str, str]:
        """As tags of MLflow."""
        return {
            "world_size": str(len(self.hosts)),
            "hosts": ", ".join(dict.fromkeys(self.hosts)),
            "devices": ", ".join(dict.fromkeys(self.devices)),
        }


def device_name(device: torch.device) -> str:
    """Such as `NVIDIA H100 80GB HBM3`, or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
