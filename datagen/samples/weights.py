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
        if found := not_finite(name, tensor):
            raise FlowmapsrError(
                f"{place}: {found}: the file is damaged, or holds the weights of a training that "
                "diverged; restore it, or name another one"
            )


def not_finite(name: str, tensor: Tensor) -> str:
    """How many values of a tensor are NaN or infinite; nothing if none is."""
    if not tensor.numel() or not tensor.is_floating_point():
        return ""
    if all(end.isfinite() for end in tensor.aminmax()):  # both are NaN if any value is
        return ""
    count = tensor.numel() - int(tensor.isfinite().sum())
    return f"{count:,} of the {tensor.numel():,} values of {name} are not finite"
