"""What all three programs may be told, and the device they run on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Options:
    out: Path
    """Folder for what is brought back."""
    work: Path
    """Folder for what stays: datasets, runs and the VAE."""
    photos: Path | None = None
    """Folder of photos; None takes those that come with two installed libraries."""
    tiny: bool = False
    """The same in small, which a CPU does within minutes."""


def default_work() -> Path:
    return Path(tempfile.gettempdir()) / "flowmapsr-gpu"


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def precision(place: torch.device) -> Precision:
    """What networks are run with: bf16 has no gain on most CPUs, and some take minutes for it."""
    return "bf16" if place.type == "cuda" else "fp32"
