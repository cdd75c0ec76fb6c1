"""An evaluation as files: `results.jsonl`, a line for each photo and method, and `summary.json`."""

from __future__ import annotations

from datagen.io import storage
from datagen.records import FrozenModel
from training.run_dir.records import CONVENTION, Evaluation, EvaluationRow
from training.settings.evaluation import EvaluationSettings

RESULTS, SUMMARY = "results.jsonl", "summary.json"


class Summary(FrozenModel):
    """`summary.json`: the table, and how it was made."""

    model: str
    settings: EvaluationSettings
    convention: str
    """Of the fields `psnr` and `ssim` of a row; the names of other metrics say theirs."""
    rows: tuple[EvaluationRow, ...]
    notes: tuple[str, ...]


def write_results(folder: str, model: str, settings: EvaluationSettings, found: Evaluation) -> None:
    """Into a folder or `s3://` prefix; replaces those of an earlier evaluation, the summary last.

    Raises:
        FlowmapsrError: it cannot be written.
    """
    base = folder.rstrip("/")
    lines = "".join(row.model_dump_json() + "\n" for row in found.pictures)
    storage.write_bytes(f"{base}/{RESULTS}", lines.encode())
    summary = Summary(
        model=model,
        settings=settings,
        convention=CONVENTION,
        rows=found.rows,
        notes=found.notes,
    )
    storage.write_bytes(f"{base}/{SUMMARY}", summary.model_dump_json(indent=2).encode())
