"""The records that training hands on: what a finished stage is and where its model lies."""

from __future__ import annotations

from datagen.records import FrozenModel

BICUBIC = "bicubic"
"""Method of the evaluation rows that every model is compared with."""


class StageRecord(FrozenModel):
    """`<run>/stages/<name>/done.json`: its presence says that the stage is finished."""

    stage: str
    steps: int
    images_seen: int
    recipe_digest: str
    dataset_digest: str
    model: str
    """The model folder, relative to the run."""


class Workers(FrozenModel):
    """All workers of a stage, in order of rank."""

    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    """Names of GPUs, or of processors."""
    on_gpus: bool

    @property
    def hours_metric(self) -> str:
        """Name of the metric for what they cost."""
        return "perf/gpu_hours" if self.on_gpus else "perf/worker_hours"

    @property
    def machines(self) -> tuple[str, ...]:
        """The hosts, each once."""
        return tuple(dict.fromkeys(self.hosts))

    def tags(self) -> dict[str, str]:
        """As tags of MLflow."""
        return {
            "world_size": str(len(self.hosts)),
            "hosts": ", ".join(self.machines),
            "devices": ", ".join(dict.fromkeys(self.devices)),
        }


class StageProgress(FrozenModel):
    """`<run>/stages/<name>/progress.json`: where a running stage stands, rewritten every few
    seconds."""

    stage: str
    step: int
    steps: int
    images_per_second: float
    headline: str
    """The term that the stage is watched by, named as in MLflow."""
    headline_value: float
    updated: float
    """Seconds since the epoch."""
    checkpoint_step: int
    """Step of the newest checkpoint; 0 before the first."""
    checkpoint_time: float
    """Seconds since the epoch; 0 before the first."""
    worker_hours: float
    """Hours of all workers together, over all starts."""
    problem: str = ""
    """Why the last checkpoint is not there; empty when it is."""


class EvaluationRow(FrozenModel):
    """One line of the evaluation table: means over the held-out photos."""

    method: str
    """`bicubic`, or the name of the model's system."""
    scale: float
    steps: int
    """Network evaluations; 0 for bicubic."""
    psnr: float
    """dB against the original, RGB."""
    ssim: float
    seconds: float
    """Mean seconds for one photo."""
