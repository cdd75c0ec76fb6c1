"""A checkpoint of any architecture that spandrel knows (the extra `spandrel`), from safetensors."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io.weight_files import tensor_entries
from datagen.samples.weights import check_finite
from training.evaluation.other_networks.enlarger import TILE, Enlarger


@lru_cache(maxsize=2)  # for all scales
def spandrel_network(file: str) -> Enlarger:
    """
    Raises:
        FlowmapsrError: spandrel cannot be imported; or the file is damaged, of no known
            architecture, or of a network that does not make RGB of RGB.
    """
    spandrel = _spandrel()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tensors = spandrel.canonicalize_state_dict(_tensors(Path(file)))
    try:
        model = spandrel.ModelLoader(device).load_from_state_dict(tensors)
    except spandrel.UnsupportedModelError as error:
        raise FlowmapsrError(f"{file} is of no architecture that spandrel knows") from error
    except Exception as error:  # of many kinds: each architecture reads its own tensors
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise FlowmapsrError(f"{file}: spandrel cannot make its network ({text})") from error
    colors = (model.input_channels, model.output_channels)
    if not isinstance(model, spandrel.ImageModelDescriptor) or colors != (3, 3):
        what = f"{model.architecture.name} from {colors[0]} to {colors[1]} channels"
        raise FlowmapsrError(f"{file} holds {what}; name a network from RGB to RGB")
    model.float().eval()
    whole = model.tiling is not spandrel.ModelTiling.SUPPORTED

    @torch.inference_mode()
    def run(picture: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None]
        made: Tensor = model(pixels)
        return np.asarray(made[0].permute(1, 2, 0).float().cpu().numpy())

    return Enlarger(int(model.scale), run, None if whole else TILE)


def _spandrel() -> Any:
    try:
        import spandrel
    except Exception as error:  # of any kind: it imports torchvision, built for another torch
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise FlowmapsrError(
            f"spandrel cannot be imported ({text}): pip install 'flowmapsr[spandrel]', with torch "
            "and torchvision of the same build"
        ) from error
    return spandrel


def _tensors(path: Path) -> dict[str, Tensor]:
    tensor_entries(path)  # says what is wrong with the file
    found = safetensors.torch.load_file(path)
    check_finite(found, path)
    return {name: one.float() if one.is_floating_point() else one for name, one in found.items()}
