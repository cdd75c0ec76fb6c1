"""Networks of metrics with random weights, the same on every machine, and files of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from training.evaluation.metrics.arcface import ArcFace
from training.evaluation.metrics.backbones import alexnet_slices
from training.evaluation.metrics.inception import Inception
from training.evaluation.metrics.weights import ALEXNET, ARCFACE, INCEPTION, VGG16
from training.losses.lpips import vgg16_slices

_FEATURES = {
    ALEXNET.file: (0, 3, 6, 8, 10),
    VGG16.file: (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
}
"""Numbers of the convolutions in torchvision's `features`."""


def random_weights(file: str) -> dict[str, Tensor]:
    """Under the names of those who publish such a network; each depends on its name alone."""
    with torch.device("meta"):
        network = {
            ALEXNET.file: alexnet_slices,
            VGG16.file: vgg16_slices,
            INCEPTION.file: Inception,
            ARCFACE.file: ArcFace,
        }[file]()
    shapes = {
        name: tuple(one.shape)
        for name, one in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    if numbers := _FEATURES.get(file):
        names = (f"features.{number}.{part}" for number in numbers for part in ("weight", "bias"))
        shapes = dict(zip(names, shapes.values(), strict=True))
    return _drawn(shapes)


def _drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    found = {}
    for name, shape in shapes.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        if name.endswith("running_var"):
            values = 1 + 0.2 * np.abs(values)
        elif len(shape) > 1:  # keeps the size of what goes through
            values = values * np.sqrt(2 / np.prod(shape[1:]), dtype=np.float32)
        else:
            values = (1 if name.endswith("weight") else 0) + 0.1 * values
        found[name] = torch.from_numpy(values.astype(np.float32))
    return found


def save_random_weights(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        safetensors.torch.save_file(random_weights(file), folder / file)
    return folder
