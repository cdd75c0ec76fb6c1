"""Writes pieces of flattened tensors to safetensors files and reads any range of them.

A key is `<kind>/<parameter>@<start>`: the values of a flattened parameter from index `start`.
A reader may ask for any range, whatever the pieces are.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io import storage

BUFFER = "buffer"
"""Kind of a module's buffers, which are stored whole."""
STEP = "step"
"""Kind of an optimizer's count of updates, a single number."""
_PREFIX = 8
"""Bytes before the header, which contain its length."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def key(kind: str, name: str, start: int) -> str:
    return f"{kind}/{name}@{start}"


def safetensors_chunks(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file with tensors that are contiguous and in host memory, one at a
    time and without a copy of any.

    safetensors' own writer copies all tensors first, and hashing its file would read it again.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX)  # the data begins at a multiple of eight bytes
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _shapes(uri: str) -> dict[str, list[int]]:
    """Shape of each tensor of a safetensors file by its key; only the header is read."""
    (length,) = struct.unpack("<Q", storage.read_range(uri, start=0, length=_PREFIX))
    header = json.loads(storage.read_range(uri, start=_PREFIX, length=length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


@dataclass(frozen=True)
class _Piece:
    uri: str
    key: str
    start: int
    stop: int


class PieceFiles:
    """All pieces of one network, of which only the headers of files are read until requested.

    The files are given by URI, with a function that returns each on this machine.
    """

    def __init__(self, files: Mapping[str, Callable[[], Path]]) -> None:
        self._files = files
        self._opened: dict[str, Any] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        for uri in files:
            for name, shape in _shapes(uri).items():
                label, _, start = name.rpartition("@")
                piece = _Piece(uri, name, int(start), int(start) + math.prod(shape))
                self._pieces.setdefault(label, []).append(piece)

    def has(self, kind: str, name: str) -> bool:
        return f"{kind}/{name}" in self._pieces

    def read(self, kind: str, name: str, *, start: int, stop: int, numel: int) -> Tensor:
        """Values `start` to `stop` of the flattened tensor, which has `numel`.

        Raises:
            FlowmapsrError: pieces are missing, or the stored tensor has another size.
        """
        pieces = self._pieces.get(f"{kind}/{name}", [])
        stored = sum(piece.stop - piece.start for piece in pieces)
        if stored != numel:
            held = f"{stored} values" if pieces else "none"
            raise FlowmapsrError(
                f"the checkpoint belongs to another network: it holds {held} of {kind} of {name}, "
                f"which has {numel} values; train with the settings it was made with, or start "
                "over in another folder"
            )
        values = torch.empty(stop - start)
        for piece in pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                whole = self._open(piece).get_slice(piece.key)
                part = whole[first - piece.start : last - piece.start]
                values[first - start : last - start] = part
        return values

    def number(self, kind: str, name: str) -> float:
        """A stored single value."""
        piece = self._pieces[f"{kind}/{name}"][0]  # every worker that has it stores the same
        return float(self._open(piece).get_tensor(piece.key))

    def whole(self, kind: str, name: str) -> Tensor:
        """A tensor that was stored as one piece, in its shape and type."""
        (piece,) = self._pieces[f"{kind}/{name}"]
        return cast(Tensor, self._open(piece).get_tensor(piece.key))

    def _open(self, piece: _Piece) -> Any:
        """The memory-mapped file of the piece: a slice reads only its own bytes."""
        if piece.uri not in self._opened:
            self._opened[piece.uri] = safe_open(self._files[piece.uri](), framework="pt")
        return self._opened[piece.uri]
