"""Records of a run: finished stages, their workers, progress and evaluation rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import ConfigDict

from datagen.records import FrozenModel

BICUBIC = "bicubic"
"""Method of the baseline rows of an evaluation."""
PSNR, SSIM = "psnr_rgb", "ssim_rgb"
"""Metrics of every evaluation with originals; see `CONVENTION`."""
STILL_SECONDS = 30.0
"""A stage without a step for so long is said to stand still."""
CONVENTION = (
    "PSNR and SSIM on RGB, 8 bits, the whole image without a cropped border; SSIM with a Gaussian "
    "window of 11 pixels, sigma 1.5; means over the photos"
)
"""What the numbers of an evaluation mean: those of papers are often of luma, with a border cut."""
EndedBy = Literal["steps", "early_stopping", "adversarial.convergence"]


class ChosenStep(NamedTuple):
    """The step whose weights are a stage's model."""

    step: int
    why: str
    """Such as `last`, or `best val/psnr_nfe1: 24.3`."""
    checkpoint: str = ""
    """Digest of that step's checkpoint; on the first worker only."""


class StageWeights(FrozenModel):
    """The weights of a finished stage, from which another one grew."""

    stage: str
    step: int
    checkpoint: str
    """Digest of the checkpoint that held them."""

    def __str__(self) -> str:
        return f"{self.stage} at step {self.step}"


class StageRecord(FrozenModel):
    """`<run>/stages/<name>/done.json`; its presence means that the stage is finished."""

    stage: str
    steps: int
    images_seen: int
    ended: str = ""
    """Why at that step, such as `all 1000 steps`; empty in records of older versions."""
    ended_by: EndedBy | None = None
    """The setting that decided it; null in records of older versions."""
    model_step: int | None = None
    """The step whose weights are the model; null in records of older versions."""
    checkpoint: str = ""
    """Digest of the checkpoint that held them."""
    recipe_digest: str
    dataset_digest: str
    model: str
    """The model folder, relative to the run."""

    @property
    def weights(self) -> StageWeights:
        step = self.steps if self.model_step is None else self.model_step
        return StageWeights(stage=self.stage, step=step, checkpoint=self.checkpoint)


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
    doing: str = ""
    """What the workers do before the next step, if it may take long."""

    @property
    def note(self) -> str:
        """How it goes, in words; every launcher shows them beside the number of steps."""
        return (
            f"{self.headline} {self.headline_value:.4f}, {self.images_per_second:.1f} images/s, "
            f"{self.data_wait_fraction:.0%} waiting for data, {self.memory_gb:.1f} GB of memory"
        )

    def stands_still(self, seconds: float) -> str:
        """That its last step was so many seconds ago, in words; empty if that is not long."""
        if seconds < STILL_SECONDS:
            return ""
        doing = f" ({self.doing})" if self.doing else ""
        return f"no step for {seconds:.0f} s{doing}"

    def seconds_left(self, images_per_step: float) -> float | None:
        """At the present speed; None when that is not known."""
        images_left = (self.steps - self.step) * images_per_step
        return images_left / self.images_per_second if self.images_per_second else None


class EvaluationRow(FrozenModel):
    """A row of the evaluation table: means over the held-out photos."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # PSNR of equal pictures is infinite

    method: str
    """`bicubic`, or the name of the model's system."""
    scale: float
    steps: int
    """Network evaluations; 0 for bicubic."""
    lora_scale: float | None = None
    """As the evaluation set it; null is the model's own."""
    guidance: float | None = None
    psnr: float | None
    """dB against the original; see `CONVENTION`. Null where there are no originals."""
    ssim: float | None
    seconds: float
    """Mean seconds per photo."""
    parameters: int | None = None
    """Of the model, in its folder; null for bicubic."""
    gflop: float | None = None
    """10^9 operations for a picture of 256x256, as a machine-independent cost; null for bicubic."""
    photos: int | None = None
    """How many have a part in the means; null in records of older versions."""
    values: dict[str, float] = {}
    """Every metric by its name, which says its convention; means, but for those of sets."""

    @property
    def more(self) -> dict[str, float]:
        """The values that are not fields of their own."""
        return {name: one for name, one in self.values.items() if name not in (PSNR, SSIM)}


def convention_of(rows: Iterable[EvaluationRow]) -> str:
    """What PSNR and SSIM mean; nothing where they are not measured."""
    return CONVENTION if any(row.psnr is not None for row in rows) else ""


class PictureRow(FrozenModel):
    """A line of `results.jsonl`: one photo, restored by one method."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # PSNR of equal pictures is infinite

    photo: str
    """Its path below the folder of photos."""
    method: str
    scale: float
    steps: int
    lora_scale: float | None = None
    """As the evaluation set it; null is the model's own."""
    guidance: float | None = None
    values: dict[str, float]
    """Every metric that this photo has."""


class PictureSeconds(FrozenModel):
    """A line of `timings.jsonl`: how long restoring one photo took, alone."""

    photo: str
    method: str
    scale: float
    steps: int
    seconds: float


class Evaluation(FrozenModel):
    """What an evaluation found."""

    rows: tuple[EvaluationRow, ...]
    """The table, by scale and method."""
    pictures: tuple[PictureRow, ...]
    seconds: tuple[float, ...] = ()
    """Of each of the pictures."""
    models: dict[str, str] = {}
    """Folder of each model, by its name in the table."""
    hardware: str = ""
    """What restored the photos."""
    notes: tuple[str, ...] = ()
    """Everything that could not be measured, and why; and what was wrong with a baseline."""
    better: dict[str, Literal["higher", "lower"]] = {}
    """Which way is better, by the name of a metric."""


class Seconds(FrozenModel):
    """How long a model takes for one picture, timed apart."""

    method: str
    steps: int
    side: int
    """Of the restored picture, which is square, pixels."""
    seconds: float
    """Median."""
    low: float
    """The middle half of all calls lies between this and `high`."""
    high: float
    calls: int
    hardware: str


class BenchmarkRecord(FrozenModel):
    """What a benchmark found, and where it is."""

    found: Evaluation
    timings: tuple[Seconds, ...]
    chunks: int
    measured: int
    """Chunks that this run measured; the others were done before."""
    nothing_left: bool
    """Whether every chunk, timing and picture was done before."""
    curves: tuple[str, ...]
    """Folders of the models whose quality curve was written."""
    report: str | None
    mlflow: str | None
