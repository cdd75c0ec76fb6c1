"""A convolutional network in tiles, exactly: each tile sees all that decides about its inside, and
is cut, not blended. For networks without global statistics, which group norms are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    *,
    reach: int,
    inside: int = 1,
    outside: int = 1,
) -> Tensor:
    """`network(x)`, in tiles.

    Args:
        tile: side of a tile in latents, 1 or more.
        reach: latents around one that decide about it.
        inside, outside: side of a latent in the network's input and output.
    """
    height, width = (side // inside for side in x.shape[-2:])
    rows = []
    for top in range(0, height, tile):
        row = []
        for left in range(0, width, tile):
            # At the picture's own borders the network pads as it would there in one piece.
            y0, y1 = max(0, top - reach), min(height, top + tile + reach)
            x0, x1 = max(0, left - reach), min(width, left + tile + reach)
            part = x[..., y0 * inside : y1 * inside, x0 * inside : x1 * inside]
            y, z = (top - y0) * outside, (left - x0) * outside
            side = tile * outside
            row.append(network(part)[..., y : y + side, z : z + side])
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)
