"""Metrics that look with a network: LPIPS, DISTS, the angle between faces, Inception's features.

Each is a function on pictures, RGB uint8 (H, W, 3), whose network is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from training.evaluation.metrics import arcface, inception
from training.evaluation.metrics.backbones import alexnet_slices
from training.evaluation.metrics.dists import Dists
from training.evaluation.metrics.metric import NotMeasurable
from training.evaluation.metrics.weights import (
    ALEXNET,
    ARCFACE,
    INCEPTION,
    VGG16,
    MetricWeights,
    Published,
)
from training.losses.lpips import (
    LpipsDistance,
    convert_features,
    convert_linears,
    vgg16_slices,
)

SMALL = Path(__file__).with_name("perceptual.safetensors")
"""The linear layers of LPIPS (`alex.`, `vgg.`), alpha and beta of DISTS (`dists.`)."""
LEAST = {"alex": 31, "vgg": 16}
"""Least side of a picture, pixels, by network."""
_BATCH = 16

Compare = Callable[[np.ndarray, np.ndarray], float]
Features = Callable[[np.ndarray], np.ndarray]


class Networks:
    """Those of one folder, on one device. Every member raises `Unavailable` where its weights are
    missing or those of another network."""

    def __init__(self, weights: MetricWeights, device: torch.device) -> None:
        self.weights, self.device = weights, device

    def lpips(self, network: Literal["alex", "vgg"]) -> Compare:
        """Of a result and its original; their order does not matter."""
        published = ALEXNET if network == "alex" else VGG16
        slices = alexnet_slices() if network == "alex" else vgg16_slices()
        small = convert_linears(_small(network))
        distance = self._loaded(LpipsDistance(slices), published, slices, small)

        @torch.inference_mode()
        def compare(result: np.ndarray, original: np.ndarray) -> float:
            _at_least(result, LEAST[network])
            both = (self._tensor(one) * 2 - 1 for one in (result, original))
            return float(distance(*both))

        return compare

    def dists(self) -> Compare:
        """Of a result and its original; their order does not matter."""
        network = Dists()
        distance = self._loaded(network, VGG16, network.slices, _small("dists"))

        @torch.inference_mode()
        def compare(result: np.ndarray, original: np.ndarray) -> float:
            _at_least(result, LEAST["vgg"])
            return float(distance(self._tensor(result), self._tensor(original)))

        return compare

    def identity_angle(self) -> Compare:
        """Degrees between two faces: 0 for the same picture."""
        network = self._loaded(arcface.ArcFace(), ARCFACE)

        @torch.inference_mode()
        def compare(result: np.ndarray, original: np.ndarray) -> float:
            a, b = (network(_face(one).to(self.device))[0].double() for one in (result, original))
            cosine = torch.dot(a, b) / (a.norm() * b.norm())
            return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))

        return compare

    @cached_property
    def whole_features(self) -> Features:
        """Inception's of the whole picture, resized as clean-fid does: (1, 2048)."""
        network = self._inception
        return lambda picture: _inception_features(network, _resized(picture)[None], self.device)

    @cached_property
    def patch_features(self) -> Features:
        """Inception's of all squares of 299 pixels side by side: (N, 2048)."""
        network = self._inception
        return lambda picture: _inception_features(network, _patches(picture), self.device)

    @cached_property
    def _inception(self) -> nn.Module:
        return self._loaded(inception.Inception(), INCEPTION)

    def _tensor(self, picture: np.ndarray) -> Tensor:
        """(1, 3, H, W) in [0, 1]."""
        pixels = torch.from_numpy(picture.copy()).to(self.device)
        return pixels.permute(2, 0, 1)[None].float() / 255

    def _loaded(
        self,
        network: nn.Module,
        published: Published,
        slices: nn.ModuleList | None = None,
        small: Mapping[str, Tensor] | None = None,
    ) -> nn.Module:
        """The network with published weights; with `slices` these are its features only."""
        tensors = self.weights.read(published)
        own = network.state_dict()
        try:
            if slices is not None:
                tensors = {**convert_features(tensors, slices), **(small or {})}
            network.load_state_dict(
                {name: tensors[name] for name in own if _counts(name)}, strict=False
            )
        except KeyError as error:
            raise self.weights.wrong(published, f"it has no {error.args[0]}") from error
        except (ValueError, RuntimeError) as error:
            raise self.weights.wrong(published, error) from error
        return network.eval().to(self.device)


def _counts(name: str) -> bool:
    """Whether a tensor has a part in the result; some publishers leave out the others."""
    return not name.endswith("num_batches_tracked")


@torch.inference_mode()
def _inception_features(
    network: nn.Module, squares: np.ndarray, device: torch.device
) -> np.ndarray:
    """(N, 299, 299, 3), levels of 8 bits -> (N, 2048) float64."""
    found = []
    for start in range(0, len(squares), _BATCH):
        batch = torch.from_numpy(squares[start : start + _BATCH]).to(device)
        found.append(network((batch.permute(0, 3, 1, 2).float() - 128) / 128))
    return torch.cat(found).double().cpu().numpy()


def _small(prefix: str) -> dict[str, Tensor]:
    found = {}
    for name, tensor in safetensors.torch.load_file(SMALL).items():
        kind, _, rest = name.partition(".")
        if kind == prefix:
            found[rest] = tensor
    return found


def _at_least(picture: np.ndarray, side: int) -> None:
    height, width = picture.shape[:2]
    if min(height, width) < side:
        raise NotMeasurable(f"{width}x{height} is smaller than {side} pixels")


def _face(picture: np.ndarray) -> Tensor:
    """(1, 1, 128, 128) in [-1, 1], as VQFR's script."""
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (arcface.SIDE, arcface.SIDE), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy((small.astype(np.float32) - 127.5) / 127.5)[None, None]


def _resized(picture: np.ndarray) -> np.ndarray:
    """(299, 299, 3): each color by Pillow's antialiased bicubic in floats."""
    size = (inception.SIDE, inception.SIDE)
    colors = [
        Image.fromarray(picture[..., color].astype(np.float32)).resize(
            size, Image.Resampling.BICUBIC
        )
        for color in range(3)
    ]
    return np.stack([np.asarray(color) for color in colors], axis=-1).clip(0, 255)


def _patches(picture: np.ndarray) -> np.ndarray:
    """(N, 299, 299, 3), from the upper left corner on."""
    side = inception.SIDE
    _at_least(picture, side)
    rows, columns = (length // side for length in picture.shape[:2])
    whole = picture[: rows * side, : columns * side]
    squares = whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return squares.reshape(-1, side, side, 3)
