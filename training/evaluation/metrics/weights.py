"""The networks that metrics look with: safetensors of one folder, or the published downloads.

A download is read as tensors only, checked, and stored as safetensors; no other pickle is opened.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.samples.weights import read_weights
from training.evaluation.metrics.metric import Unavailable

_SECONDS = 30
"""Longest wait for a server's answer."""


class Published(NamedTuple):
    """Weights that somebody publishes; tensors keep their names."""

    file: str
    what: str
    address: str
    sha256: str = ""
    """Its first digits, as the publisher's file name says them; empty where it says none."""


ALEXNET = Published(
    "alexnet.safetensors",
    "torchvision's AlexNet",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be79",
)
VGG16 = Published(
    "vgg16.safetensors",
    "torchvision's VGG-16",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af",
)
INCEPTION = Published(
    "inception.safetensors",
    "pytorch-fid's Inception",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d",
)
ARCFACE = Published(
    "arcface.safetensors",
    "GFPGAN's ArcFace ResNet-18",
    "https://github.com/TencentARC/GFPGAN/releases/download/v0.1.0/arcface_resnet18.pth",
)


class MetricWeights:
    """A folder of `Published.file`; None is that of the downloads, which are fetched if missing."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._failed: dict[str, str] = {}

    def read(self, wanted: Published) -> dict[str, Tensor]:
        """
        Raises:
            Unavailable: it is missing or damaged; says how to get it.
        """
        if wanted.file in self._failed:  # not to wait for a server again
            raise Unavailable(self._failed[wanted.file])
        try:
            return _plain(read_weights(self._path(wanted)))
        except (Unavailable, FlowmapsrError, OSError) as error:
            self._failed[wanted.file] = str(error)
            raise Unavailable(str(error)) from error

    def _path(self, wanted: Published) -> Path:
        if self.folder is None:
            path = downloads() / wanted.file
            if not path.is_file():
                _download(wanted, path)
            return path
        path = Path(self.folder) / wanted.file
        if not path.is_file():
            raise Unavailable(
                f"no {path}; without --metric-weights {wanted.what} is downloaded from "
                f"{wanted.address} to {downloads() / wanted.file}, which can be copied there"
            )
        return path

    def wrong(self, wanted: Published, error: object) -> Unavailable:
        """The file holds another network."""
        path = Path(self.folder) / wanted.file if self.folder else downloads() / wanted.file
        text = " ".join(str(error).split())
        return Unavailable(
            f"{path} does not hold {wanted.what} under the names of {wanted.address}: {text[:200]}"
        )


def downloads() -> Path:
    """The folder of what was downloaded before."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "flowmapsr-metrics"


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of a network that was trained on several GPUs."""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _download(wanted: Published, path: Path) -> None:
    """
    Raises:
        Unavailable: it could not be reached, or is another file.
    """
    remedy = f"put {wanted.file} with its tensors into a folder for --metric-weights"
    try:
        with urllib.request.urlopen(wanted.address, timeout=_SECONDS) as answer:
            data = answer.read()
    except OSError as error:
        raise Unavailable(f"{wanted.address} cannot be reached ({error}); {remedy}") from error
    if not hashlib.sha256(data).hexdigest().startswith(wanted.sha256):
        raise Unavailable(f"{wanted.address} gave another file than it is known for; {remedy}")
    try:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        stored = {name: one.contiguous() for name, one in tensors.items() if torch.is_tensor(one)}
    except (pickle.UnpicklingError, RuntimeError, AttributeError, EOFError) as error:
        raise Unavailable(f"{wanted.address} holds no plain weights; {remedy}") from error
    storage.write_bytes(str(path), safetensors.torch.save(stored))
