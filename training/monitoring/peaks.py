"""What a device could compute at best, so that what it does compute can be judged.

Dense rates as their makers state them; knows no network.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Peak:
    """The most floating-point operations that one device can do."""

    tflops: float
    """10^12 per second."""
    source: str
    """Where the number comes from, in words."""

    def tags(self) -> dict[str, str]:
        return {"peak_tflops": f"{self.tflops:.4g} ({self.source})"}


@dataclass(frozen=True)
class _Rates:
    """10^12 per second: matrix products of bf16 with fp32 sums, and of fp32 without TF32."""

    bf16: float
    fp32: float


GPUS: tuple[tuple[str, _Rates], ...] = (
    ("B200", _Rates(2250, 75)),
    ("H200 NVL", _Rates(835, 60)),
    ("H200", _Rates(989, 67)),
    ("H100 NVL", _Rates(835, 60)),
    ("H100 PCIe", _Rates(756, 51)),
    ("H100", _Rates(989, 67)),
    ("A100", _Rates(312, 19.5)),
    ("L40S", _Rates(362, 91.6)),
    ("L40", _Rates(181, 90.5)),
    ("L4", _Rates(121, 30.3)),
    ("A40", _Rates(150, 37.4)),
    ("A10", _Rates(125, 31.2)),
    ("RTX 4090", _Rates(165, 82.6)),
    ("RTX 3090", _Rates(71, 35.6)),
)
"""By a word of the device's name, as CUDA tells it; longer words come before those they hold."""


def device_peak(device: torch.device, precision: Precision) -> Peak | None:
    """The peak of `device`: from the table, or measured on a CPU.

    None for a GPU that is not in the table.
    """
    if device.type == "cpu":
        return Peak(_measured(precision), f"measured with a matrix product in {precision} on CPU")
    name = torch.cuda.get_device_name(device)
    return gpu_peak(name, precision)


def gpu_peak(name: str, precision: Precision) -> Peak | None:
    """The peak of a GPU by its name, such as `NVIDIA H100 80GB HBM3`."""
    words = name.replace("-", " ").split()
    for word, rates in GPUS:
        parts = word.split()
        if all(part in words for part in parts):
            return Peak(getattr(rates, precision), f"data sheet of {word}, dense {precision}")
    return None


def _measured(precision: Precision, *, side: int = 512, seconds: float = 0.2) -> float:
    """The best of some square matrix products with this process's threads, 10^12 per second."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(side, side, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12
