"""A few samples as one picture: LQ, the model's 1, 2 and 4 steps, HQ. For the eye of a reviewer."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datagen.samples.codecs import Codec
from training.data.loader import Batch
from training.flowmap.interpolant import Velocity
from training.flowmap.sampler import sample

GRID_STEPS = (1, 2, 4)


@torch.no_grad()
def image_grid(u: Velocity, batch: Batch, codec: Codec) -> Image.Image:
    """One row a sample; columns LQ, NFE 1, 2, 4, HQ."""
    columns = [batch.lq, *(sample(u, batch.lq, steps) for steps in GRID_STEPS), batch.hq]
    rows = torch.cat([to_pixels(codec.decode(latents)) for latents in columns], dim=3)
    return Image.fromarray(np.concatenate(list(rows.permute(0, 2, 3, 1).cpu().numpy()), axis=0))


def to_pixels(decoded: Tensor) -> Tensor:
    """Decoded images in [-1, 1] (B, 3, H, W) -> uint8, clamped and rounded."""
    return ((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
