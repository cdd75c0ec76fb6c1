"""What tests look up in MLflow."""

from __future__ import annotations

from pathlib import Path

from training.tracking.store.run_names import RunNames


def mlflow_names(run: str | Path) -> RunNames:
    """The IDs of a run and its stages in MLflow."""
    return RunNames.model_validate_json(Path(run, "mlflow.json").read_bytes())
