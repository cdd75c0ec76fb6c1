"""Downloads model versions from MLflow's registry into local model folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from datagen.errors import FlowmapsrError
from training.tracking.mlflow_client import tracking_uri


def download_model(uri: str, folder: Path) -> None:
    """Downloads `models:/NAME/VERSION` into `folder`, completely or not at all, if it is missing.

    Raises:
        FlowmapsrError: no such version, or the tracking server does not provide it.
    """
    if folder.is_dir():
        return
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        got = download_artifacts(
            artifact_uri=uri, dst_path=str(partial), tracking_uri=tracking_uri()
        )
        os.replace(got, folder)
    except (MlflowException, OSError) as error:
        raise FlowmapsrError(
            f"init_from: MLflow at {tracking_uri()} does not provide {uri} ({error}); check "
            "name, version and MLFLOW_TRACKING_URI"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
