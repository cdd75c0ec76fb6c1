"""Pictures of a flow map while it trains: restored samples, and the loss and its weighting over
(t, s)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from datagen.samples.codecs import Codec
from training.data.loader import Batch
from training.flowmap.interpolant import Velocity, sample
from training.flowmap.objective import DynamicWeighting
from training.flowmap.time_maps import draw_time_map, grid_times
from training.tracking.pictures import SAMPLES, image_grid

STEPS = (1, 2, 4)
NOTE = (
    "`samples` has a row for each photo: LQ, the model's 1, 2 and 4 steps, the original. "
    "`loss_over_times` is log10 of the loss over the times (t, s), `weighting_over_times` the "
    "learned weighting phi."
)


@torch.no_grad()
def render_pictures(
    u: Velocity,
    batch: Batch,
    codec: Codec,
    *,
    loss_over_times: np.ndarray,
    weighting: DynamicWeighting | None,
) -> dict[str, Image.Image]:
    """Pictures by name, of the network as it is at the moment.

    Args:
        u: the network as average velocity u(x, t, s).
        loss_over_times: means of the cells [t, s] since the last pictures; there is no picture of
            it while all are NaN.
    """
    columns = [batch.lq, *(sample(u, batch.lq, steps) for steps in STEPS), batch.hq]
    images = {SAMPLES: image_grid([codec.decode(latents) for latents in columns])}
    if np.isfinite(loss_over_times).any():
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = np.log10(loss_over_times)
        images["loss_over_times"] = draw_time_map(logarithm, "log10 of the loss")
    if weighting is not None:
        t, s = (times.to(batch.lq.device) for times in grid_times())
        side = round(len(t) ** 0.5)
        phi = weighting(t, s).view(side, side).cpu().numpy()
        images["weighting_over_times"] = draw_time_map(phi, "phi")
    return images
