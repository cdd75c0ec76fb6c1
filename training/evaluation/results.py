"""An evaluation as files: `results.jsonl`, a line for each photo and method, `timings.jsonl` with
their seconds, which differ each time, and `summary.json`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.local import errors
from datagen.records import FrozenModel
from training.evaluation.differences import Difference, differences
from training.run_dir.records import (
    Evaluation,
    EvaluationRow,
    PictureSeconds,
    Seconds,
    convention_of,
)
from training.settings.evaluation import EvaluationSettings

RESULTS, TIMINGS, SUMMARY = "results.jsonl", "timings.jsonl", "summary.json"


class Summary(FrozenModel):
    """`summary.json`: the table, and how it was made."""

    models: dict[str, str]
    """Folder of each, by its name in the table."""
    settings: dict[str, Any]
    """Of the evaluation, or the recipe of the benchmark."""
    convention: str
    """Of the fields `psnr` and `ssim` of a row; the names of other metrics say theirs."""
    rows: tuple[EvaluationRow, ...]
    differences: tuple[Difference, ...] = ()
    """Of the models from the first one."""
    timings: tuple[Seconds, ...] = ()
    """Of a benchmark that times."""
    notes: tuple[str, ...]


def require_place(path: str) -> None:
    """Makes the folder of a file that is written when the work is done.

    Raises:
        FlowmapsrError: nothing can be written there, or the path is a folder.
    """
    if storage.is_remote(path):
        return
    with errors(path, "write"):
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    if Path(path).is_dir():
        raise FlowmapsrError(f"{path} is a folder; name a file, such as {path}/report.html")


def write_results(
    folder: str,
    settings: EvaluationSettings,
    found: Evaluation,
    timings: tuple[Seconds, ...] = (),
) -> None:
    """Into a folder or `s3://` prefix; replaces those of an earlier evaluation, the summary last.

    Raises:
        FlowmapsrError: it cannot be written.
    """
    base = folder.rstrip("/")
    lines = "".join(row.model_dump_json() + "\n" for row in found.pictures)
    storage.write_bytes(f"{base}/{RESULTS}", lines.encode())
    storage.write_bytes(f"{base}/{TIMINGS}", _timings(found).encode())
    summary = Summary(
        models=found.models,
        settings=settings.model_dump(mode="json"),
        convention=convention_of(found.rows),
        rows=found.rows,
        differences=differences(found),
        timings=timings,
        notes=found.notes,
    )
    storage.write_bytes(f"{base}/{SUMMARY}", summary.model_dump_json(indent=2).encode())


def _timings(found: Evaluation) -> str:
    return "".join(
        PictureSeconds(
            photo=row.photo, method=row.method, scale=row.scale, steps=row.steps, seconds=seconds
        ).model_dump_json()
        + "\n"
        for row, seconds in zip(found.pictures, found.seconds, strict=True)
    )
