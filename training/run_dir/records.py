"""The records that training hands on: what a finished stage is and where its model lies."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import Settings

BICUBIC = "bicubic"
FLOWMAPSR = "flowmapsr"
"""Methods of an evaluation row."""

Record = TypeVar("Record", bound=Settings)


class UnreadableRecord(FlowmapsrError):
    """A record is there, but torn or of another version."""


def read_record(path: Path, kind: type[Record], *, remedy: str) -> Record | None:
    """The record in a file; None where there is no file.

    Args:
        remedy: what a user does about one that cannot be read.

    Raises:
        UnreadableRecord: naming the file, its first fault and the remedy.
    """
    try:
        return kind.model_validate_json(storage.read_bytes(str(path)))
    except storage.NotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        fault = f"{where}: {first['msg']}" if where else first["msg"]
        raise UnreadableRecord(
            f"{path} is torn, or of another version of flowmapsr ({fault}): {remedy}"
        ) from error


class StageRecord(Settings):
    """`<run>/stages/<name>/done.json`: its presence says that the stage is finished."""

    stage: str
    steps: int
    images_seen: int
    recipe_digest: str
    dataset_digest: str
    model: str
    """The model folder, relative to the run."""


class Workers(Settings):
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


class StageProgress(Settings):
    """`<run>/stages/<name>/progress.json`: where a running stage stands, rewritten every few
    seconds."""

    stage: str
    step: int
    steps: int
    images_per_second: float
    loss: float
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


class EvaluationRow(Settings):
    """One line of the evaluation table: means over the held-out photos."""

    method: str
    """`bicubic` or `flowmapsr`."""
    scale: float
    steps: int
    """Network evaluations; 0 for bicubic."""
    psnr: float
    """dB against the original, RGB."""
    ssim: float
    seconds: float
    """Mean seconds for one photo."""
