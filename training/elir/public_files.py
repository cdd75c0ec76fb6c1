"""The published weights of ELIR: torch pickles at fixed addresses, read as tensors only and kept as
safetensors. No other pickle is ever opened."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
from filelock import FileLock

from datagen.errors import FlowmapsrError
from datagen.io import storage
from training.settings.initial_weights import PUBLIC

URL = "https://github.com/eladc-git/ELIR/releases/download/v1.0/elir_{}.pth"
KEPT = "flowmapsr-elir-{}.safetensors"


def public_file(name: str) -> Path:
    """The file of `elir:NAME`, downloaded if it is missing.

    Raises:
        FlowmapsrError: the download failed.
    """
    task = name.removeprefix(PUBLIC)
    path = Path(torch.hub.get_dir()) / "checkpoints" / KEPT.format(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # a machine's workers start at the same time
        if not path.is_file():
            _download(URL.format(task), path)
    return path


def _download(url: str, path: Path) -> None:
    try:
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", weights_only=True, progress=False
        )
    except (OSError, URLError) as error:
        raise FlowmapsrError(
            f"{url} could not be downloaded ({error}): try again, or put its tensors as {path}"
        ) from error
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    storage.write_bytes(str(path), safetensors.torch.save(tensors))
