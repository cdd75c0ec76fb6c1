"""The Inception network of FID (pt_inception-2015-12-05): torchvision's v3 with TensorFlow's
pooling, parameters named as pytorch-fid publishes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE, WIDTH = 299, 2048
Pool = Literal["average", "largest", "halve"]
Kernel = tuple[int, int]
Step = tuple[int, Kernel] | Literal["fork"]
"""Width and kernel of a convolution; a fork is 1x3 beside 3x1, 384 wide each."""

_FORK: tuple[tuple[str, Kernel], ...] = (("a", (1, 3)), ("b", (3, 1)))
_FORK_WIDTH = 384


def _square(width: int, side: int) -> tuple[int, Kernel]:
    return width, (side, side)


def _wide(width: int) -> tuple[int, Kernel]:
    return width, (1, 7)


def _tall(width: int) -> tuple[int, Kernel]:
    return width, (7, 1)


def _a(channels: int, pooled: int) -> Mixed:
    paths = {
        "branch1x1": [_square(64, 1)],
        "branch5x5": [_square(48, 1), _square(64, 5)],
        "branch3x3dbl": [_square(64, 1), _square(96, 3), _square(96, 3)],
    }
    return Mixed(channels, paths, "average", pooled)


def _b(channels: int) -> Mixed:
    paths = {
        "branch3x3": [_square(384, 3)],
        "branch3x3dbl": [_square(64, 1), _square(96, 3), _square(96, 3)],
    }
    return Mixed(channels, paths, "halve")


def _c(width: int) -> Mixed:
    paths = {
        "branch1x1": [_square(192, 1)],
        "branch7x7": [_square(width, 1), _wide(width), _tall(192)],
        "branch7x7dbl": [_square(width, 1), _tall(width), _wide(width), _tall(width), _wide(192)],
    }
    return Mixed(768, paths, "average", 192)


def _d(channels: int) -> Mixed:
    paths = {
        "branch3x3": [_square(192, 1), _square(320, 3)],
        "branch7x7x3": [_square(192, 1), _wide(192), _tall(192), _square(192, 3)],
    }
    return Mixed(channels, paths, "halve")


def _e(channels: int, pool: Pool) -> Mixed:
    paths: dict[str, list[Step]] = {
        "branch1x1": [_square(320, 1)],
        "branch3x3": [_square(384, 1), "fork"],
        "branch3x3dbl": [_square(448, 1), _square(384, 3), "fork"],
    }
    return Mixed(channels, paths, pool, 192)


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, channels: int, width: int, kernel: Kernel, *, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Paths side by side, and a pooled one; `halve` ends every path in a stride of 2."""

    def __init__(
        self,
        channels: int,
        paths: Mapping[str, Sequence[Step]],
        pool: Pool,
        pooled: int | None = None,
    ) -> None:
        super().__init__()
        self._pool = pool
        self._paths = [
            self._add_path(channels, name, steps, halve=pool == "halve")
            for name, steps in paths.items()
        ]
        self.branch_pool = None if pooled is None else Convolution(channels, pooled, (1, 1))

    def _add_path(
        self, channels: int, name: str, steps: Sequence[Step], *, halve: bool
    ) -> list[list[str]]:
        """Adds the convolutions; returns their names by step."""
        names = []
        for number, step in enumerate(steps, 1):
            base = name if len(steps) == 1 else f"{name}_{number}"
            if step == "fork":
                parts = {f"{base}{end}": (_FORK_WIDTH, kernel) for end, kernel in _FORK}
            else:
                parts = {base: step}
            last = halve and number == len(steps)
            for part, (width, kernel) in parts.items():
                stride = 2 if last else 1
                self.add_module(
                    part, Convolution(channels, width, kernel, stride=stride, pad=not last)
                )
            channels = sum(width for width, _ in parts.values())
            names.append(list(parts))
        return names

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for path in self._paths:
            y = x
            for step in path:
                y = torch.cat([self.get_submodule(name)(y) for name in step], dim=1)
            found.append(y)
        pooled = self._pooled(x)
        found.append(pooled if self.branch_pool is None else self.branch_pool(pooled))
        return torch.cat(found, dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        match self._pool:
            case "average":  # TensorFlow does not count the padding
                return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            case "largest":
                return functional.max_pool2d(x, 3, stride=1, padding=1)
            case "halve":
                return functional.max_pool2d(x, 3, stride=2)


class Inception(nn.Module):
    """(B, 3, 299, 299), about [-1, 1] -> (B, 2048), the mean over the last feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2, pad=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_c, (128, 160, 160, 192))
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "average"), _e(2048, "largest")
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))
