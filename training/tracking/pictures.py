"""What a reviewer looks at while a stage trains: restored samples, and the loss and its weighting
over (t, s).

Draws and writes files; knows neither the loop nor MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datagen.io import storage
from datagen.samples.codecs import Codec
from training.data.loader import Batch
from training.flowmap.objective import TrainedModel
from training.flowmap.time_maps import draw_time_map, grid_times
from training.run_dir.best_effort import secondary
from training.tracking.events import Picture
from training.tracking.grids import image_grid

NOTE = """\
**Pictures by step** stand at the end of *Model metrics*: move a card's slider, and open the card
to see them large. `samples` has a row for each photo: LQ, the model's 1, 2 and 4 steps, the
original. `loss_over_times` is log10 of the loss over the times (t, s), `weighting_over_times` the
learnt weighting phi.

**Restarts** and their reasons are in `starts.jsonl` among the artifacts, what hung in `stacks`.
"""
"""What the page of a stage says on top."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of one stage, drawn from the model as it is at the moment."""

    folder: Path
    model: TrainedModel
    batch: Batch
    codec: Codec
    keeps: bool = True
    """Whether this worker writes them; others help to evaluate a model spread over workers."""

    def draw(self, step: int, loss_over_times: Tensor) -> list[Picture]:
        """Writes and names the pictures of a step.

        Args:
            loss_over_times: a `time_map` of the loss since the last pictures; no picture while
                it is empty.
        """
        images = {"samples": image_grid(self.model.net, self.batch, self.codec)}
        total, count = loss_over_times.cpu().numpy()
        if count.any():
            with np.errstate(divide="ignore", invalid="ignore"):
                loss = np.log10(total / count)
            images["loss_over_times"] = draw_time_map(loss, "log10 of the loss")
        if self.model.weighting is not None:
            images["weighting_over_times"] = draw_time_map(self._weighting(), "phi")
        if not self.keeps:
            return []
        drawn = []
        with secondary(f"pictures in {self.folder}"):
            for key, image in images.items():
                drawn.append(self._written(key, step, image))
        return drawn

    @torch.no_grad()
    def _weighting(self) -> np.ndarray:
        """phi at the centres of the cells, [t, s]."""
        assert self.model.weighting is not None
        t, s = (times.to(self.batch.lq.device) for times in grid_times())
        side = round(len(t) ** 0.5)
        return self.model.weighting(t, s).view(side, side).cpu().numpy()

    def _written(self, key: str, step: int, image: Image.Image) -> Picture:
        # Samples keep the plain name that stands for a step.
        name = f"step-{step:06d}.png" if key == "samples" else f"{key}-{step:06d}.png"
        path = self.folder / name
        with storage.open_atomic(str(path)) as file:
            image.save(file, format="PNG")
        return Picture(key=key, step=step, path=str(path))
