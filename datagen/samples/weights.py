"""The tensors of a file of weights in memory, each of them finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io.weight_files import check_plain, tensor_entries


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as float32.

    Raises:
        FlowmapsrError: no whole safetensors file, other values than plain weights in it, or some
            that are not finite; names the file and the tensor.
    """
    check_plain(tensor_entries(path), path)
    tensors = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
    check_finite(tensors, path)
    return tensors


def check_finite(tensors: Mapping[str, Tensor], place: object) -> None:
    """Raises `FlowmapsrError` for a tensor with a value that is not finite; names it and `place`,
    the file."""
    for name, tensor in tensors.items():
        finite = tensor.isfinite()
        if tensor.is_floating_point() and not finite.all():
            raise FlowmapsrError(
                f"{place}: {tensor.numel() - int(finite.sum()):,} of the {tensor.numel():,} values "
                f"of {name} are not finite: the file is damaged, or holds the weights of a "
                "training that diverged; restore it, or name another one"
            )
