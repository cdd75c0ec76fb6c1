"""Records of a run: finished stages, their workers, progress and evaluation rows."""

from __future__ import annotations

from typing import NamedTuple

from datagen.records import FrozenModel

BICUBIC = "bicubic"
"""Method of the baseline rows of an evaluation."""
CONVENTION = (
    "PSNR and SSIM on RGB, 8 bits, the whole image without a cropped border; SSIM with a Gaussian "
    "window of 11 pixels, sigma 1.5; means over the photos"
)
"""What the numbers of an evaluation mean: those of papers are often of luma, with a border cut."""


class ChosenStep(NamedTuple):
    """The step whose weights are a stage's model."""

    step: int
    why: str
    """Such as `last`, or `best val/psnr_nfe1: 24.3`."""


class StageRecord(FrozenModel):
    """`<run>/stages/<name>/done.json`; its presence means that the stage is finished."""

    stage: str
    steps: int
    images_seen: int
    ended: str = ""
    """Why at that step, such as `all 1000 steps`; empty in records of older versions."""
    recipe_digest: str
    dataset_digest: str
    model: str
    """The model folder, relative to the run."""


class WorkerGroup(FrozenModel):
    """All workers of a stage, by rank."""

    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    """Names of GPUs, or of processors."""
    on_gpus: bool

    @property
    def machines(self) -> tuple[str, ...]:
        """The hosts, each once."""
        return tuple(dict.fromkeys(self.hosts))

    def tags(self) -> dict[str, str]:
        return {
            "world_size": str(len(self.hosts)),
            "hosts": ", ".join(self.machines),
            "devices": ", ".join(dict.fromkeys(self.devices)),
        }


class StageProgress(FrozenModel):
    """`<run>/stages/<name>/progress.json`: progress of a running stage, rewritten every few
    seconds. Times are in seconds since the epoch."""

    stage: str
    step: int
    steps: int
    images_per_second: float
    headline: str
    """The metric shown as progress, named as in MLflow."""
    headline_value: float
    updated: float
    checkpoint_step: int
    checkpoint_time: float
    """Of the newest checkpoint; both are 0 before the first."""
    worker_hours: float
    """Hours of all workers together, over all starts."""
    problem: str = ""
    """Why the last checkpoint is missing; empty if it is not."""
    data_wait_fraction: float = 0.0
    """Part of the time that the first worker waited for data."""
    memory_gb: float = 0.0
    """Of the first worker: the peak on its GPU, or what is resident, in 10^9 bytes."""
    checkpoint_gb: float = 0.0
    """Size of the newest checkpoint, 10^9 bytes."""

    def seconds_left(self, images_per_step: float) -> float | None:
        """At the present speed; None when that is not known."""
        images_left = (self.steps - self.step) * images_per_step
        return images_left / self.images_per_second if self.images_per_second else None


class EvaluationRow(FrozenModel):
    """A row of the evaluation table: means over the held-out photos."""

    method: str
    """`bicubic`, or the name of the model's system."""
    scale: float
    steps: int
    """Network evaluations; 0 for bicubic."""
    psnr: float
    """dB against the original; see `CONVENTION`."""
    ssim: float
    seconds: float
    """Mean seconds per photo."""
