"""What is there: versions of the libraries, and what the card can do at best."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cv2
import torch
from torch import nn

from tests.benchmarks.one_step import median_seconds
from training.engine.deepspeed_patches import import_deepspeed

LIBRARIES = (
    *("torch", "triton", "deepspeed", "diffusers", "peft", "transformers", "accelerate", "numpy"),
    *("pydantic", "pillow", "filelock", "psutil", "scikit-image"),
)
PRODUCT = 8192
"""Side of the matrices."""
COPY = 2**31
"""Bytes."""
CHANNELS, SIDE, BATCH = 320, 128, 8
"""Of the convolution: the largest of the paper's network."""


def libraries() -> str:
    import_deepspeed()
    found = {"python": platform.python_version(), "opencv": cv2.__version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not there"
    return ", ".join(f"{name} {number}" for name, number in found.items())


@torch.inference_mode()
def ceilings() -> str:
    """Measured rates of a product, a copy and a convolution."""
    if not torch.cuda.is_available():
        return "no GPU here"
    device = torch.device("cuda")
    a, b = torch.randn(2, PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16)
    large = torch.empty(COPY, dtype=torch.uint8, device=device)
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, device=device, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    convolution: Any = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).to(device, torch.bfloat16)
    convolution.to(memory_format=torch.channels_last)
    seconds = [
        median_seconds(work, device, warm=3, timed=10)
        for work in (lambda: a @ b, large.clone, lambda: convolution(x))
    ]
    product = 2 * PRODUCT**3 / seconds[0] / 1e12
    copy = 2 * COPY / seconds[1] / 1e12
    folded = 2 * BATCH * 9 * CHANNELS**2 * SIDE**2 / seconds[2] / 1e12
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    return (
        f"{torch.cuda.get_device_name()}, {memory:.0f} GB, bf16 product {product:.0f} TFLOP/s, "
        f"copy {copy:.2f} TB/s, bf16 convolution of {CHANNELS} channels {folded:.0f} TFLOP/s"
    )
