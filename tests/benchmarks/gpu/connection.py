"""One worker of the check `connection`: joins as training does, and sums over the workers."""

from __future__ import annotations

import torch
import torch.distributed as dist

from training.distributed import gather_workers, worker_device
from training.engine.engine import start_distributed


def main() -> None:
    device = worker_device()
    start_distributed(device)
    x = torch.ones(8, device=device)
    dist.all_reduce(x)
    dist.barrier()
    print(f"{dist.get_backend()}, sum {x.sum().item():g}, {gather_workers(device).devices[0]}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
