"""Attention over all tiles of a picture: each tile asks, and the whole picture answers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MOST_PLACES = 1 << 20
"""Places that are looked at: of larger pictures some of them, evenly spaced, as time grows by the
square. Where latents have an eighth of a picture's sides, those of 67 megapixels."""


class KeysAndValues:
    """What diffusers' `Attention` looks at, of all tiles of one picture."""

    def __init__(self, attention: Any, height: int, width: int) -> None:
        """Of a picture of `height` x `width` places."""
        self._keys_of, self._values_of = attention.to_k, attention.to_v
        self._step = max(1, math.ceil(math.sqrt(height * width / MOST_PLACES)))
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(self, x: Tensor, top: int, left: int) -> None:
        """Takes a tile: x is (B, C, h, w), as attention sees it, at these places."""
        seen = x[..., -top % self._step :: self._step, -left % self._step :: self._step]
        places = seen.flatten(2).transpose(1, 2)
        self._keys.append(self._keys_of(places))
        self._values.append(self._values_of(places))

    def apply(self) -> None:
        """From now on attention looks at what was taken in place of its input."""
        for layer, parts in ((self._keys_of, self._keys), (self._values_of, self._values)):
            _answer(layer, torch.cat(parts, dim=1))
            parts.clear()


def _answer(layer: Any, kept: Tensor) -> None:
    layer.forward = lambda x: kept
