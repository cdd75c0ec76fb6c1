"""A file of weights to a list of its tensors, read from its header; what any other file is; and
which files of a diffusers or transformers folder hold its weights.

Knows safetensors only. A file that is none is described by its first bytes, whatever its name; none
is unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from pydantic_core import from_json

from datagen.errors import FlowmapsrError, first_line

PLAIN = ("F64", "F32", "F16", "BF16")
"""Types of safetensors whose values are the weights themselves."""
_LENGTH = 8
"""Bytes in front of a header, which contain its length."""
_LONGEST_HEADER = 100_000_000
"""Bytes that safetensors allows."""
_PICKLE = (
    "only safetensors are read, because a pickle can run code: save the weights as those, in "
    "Python with safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE)"
)
_BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights: run 'git lfs pull' in the "
    "folder that it was cloned to",
    b"PK\x03\x04": f"is a zip archive, as torch.save writes it, with a pickle inside; {_PICKLE}",
    b"\x80": f"is a Python pickle; {_PICKLE}",
    b"GGUF": "is a GGUF file, whose weights are quantized: name the safetensors it was made from",
    b"\x89HDF": "is an HDF5 file, as Keras writes it: save the weights as safetensors",
    b"\x1f\x8b": "is a gzip archive: unpack it",
    b"{": "is JSON text, not weights: name the .safetensors file beside it, or its folder",
    b"<": "is a web page, not the weights, as a download without permission gives: download it "
    "again with your access token",
}
"""What a file is, and the fix, by its first bytes."""
_FILE = re.compile(r"(?:\.(?P<variant>[^.]+?))?(?<!\d-of-\d{5})\.safetensors")
_INDEX = re.compile(r"\.safetensors\.index(?:\.(?P<variant>[^.]+))?\.json")
_QUANTIZED = {
    "quant_state.bitsandbytes__nf4": "4-bit weights of bitsandbytes",
    "quant_state.bitsandbytes__fp4": "4-bit weights of bitsandbytes",
    "absmax": "4-bit weights of bitsandbytes",
    "SCB": "8-bit weights of bitsandbytes",
    "qweight": "packed weights of GPTQ or AWQ",
    "_data": "weights quantized by optimum-quanto",
    "scale_weight": "8-bit weights with scales",
    "weight_scale": "8-bit weights with scales",
}
"""What a file holds, by the last parts of the name of a tensor in it."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as a file's header tells it."""

    dtype: str
    """In safetensors' words, such as `BF16`."""
    shape: tuple[int, ...]


def tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """All tensors of a safetensors file.

    Raises:
        FlowmapsrError: it is no whole safetensors file; says what it is, and the fix.
    """
    try:
        with safetensors.safe_open(path, framework="np") as opened:
            return {name: _entry(opened.get_slice(name)) for name in list(opened.keys())}
    except (OSError, safetensors.SafetensorError) as error:
        raise FlowmapsrError(f"{path} {_explained(path, error)}") from error


def _entry(part: object) -> TensorEntry:
    return TensorEntry(part.get_dtype(), tuple(part.get_shape()))  # type: ignore[attr-defined]


def check_plain(
    entries: Mapping[str, TensorEntry], place: object, *, needed: Collection[str] | None = None
) -> None:
    """Refuses quantized weights, which are neither read nor converted.

    Raises:
        FlowmapsrError: a file with these tensors holds quantized weights, or one of those `needed`
            (all when None) has another type than weights have.
    """
    for name in entries if needed is None else needed:
        if entries[name].dtype not in PLAIN:
            what = _quantization(entries) or _other_values(name, entries[name])
            break
    else:
        what = _quantization(entries)
    if what:
        raise FlowmapsrError(
            f"{place} holds {what}, which are not read: name the file of the same model in "
            "float32, bfloat16 or float16"
        )


def check_not_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises `FlowmapsrError` where the config of diffusers or transformers in a folder says that
    its weights are quantized."""
    if how := config.get("quantization_config"):
        method = how.get("quant_method") if isinstance(how, dict) else how
        raise FlowmapsrError(
            f"{folder} holds weights quantized by {method}, which are not read: name the model "
            "that they were made from"
        )


def _quantization(names: Iterable[str]) -> str:
    for name in names:
        for ending, what in _QUANTIZED.items():
            if name.endswith(f".{ending}"):
                return f"{what} ({name})"
    return ""


def _other_values(name: str, entry: TensorEntry) -> str:
    kind = "8-bit floats" if entry.dtype.startswith("F8") else "whole numbers"
    return f"{kind} in place of weights ({name} is {entry.dtype})"


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold the weights of a folder."""

    variant: str | None
    """`fp16` in `model.fp16.safetensors`; None where a name has no such part."""
    index: Path | None
    """Where they are several."""
    files: tuple[Path, ...]


def find_weights(folder: Path, stem: str) -> WeightFiles:
    """The weights `<stem>[.<variant>].safetensors` of a folder, or the parts that an index lists;
    those without a variant where there are several.

    Raises:
        FlowmapsrError: there are none, or an index that cannot be read.
    """
    found: dict[tuple[bool, str, bool], Path] = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        name = path.name.removeprefix(stem)
        for is_file, pattern in enumerate((_INDEX, _FILE)):
            if match := pattern.fullmatch(name):
                variant = match["variant"] or ""
                # Without its moving average a model is one that nobody looked at.
                found[variant == "non_ema", variant, bool(is_file)] = path
    if not found:
        held = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FlowmapsrError(
            f"{folder} holds no {stem}.safetensors (it holds {held}); only safetensors are read, "
            "never a pickle"
        )
    (_, variant, is_file), path = min(found.items())
    if is_file:
        return WeightFiles(variant or None, None, (path,))
    parts = read_json(path).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise FlowmapsrError(f"{path} is no index of weights: download it again")
    files = tuple(folder / part for part in sorted(set(map(str, parts.values()))))
    return WeightFiles(variant or None, path, files)


def checked_variant(folder: Path, stem: str) -> str | None:
    """The variant of the weights that a library is about to load from a folder; None without one,
    or where there is no such folder: a name of the Hugging Face hub.

    Raises:
        FlowmapsrError: the folder holds no weights, or such that a library would load as others.
    """
    if not folder.is_dir():
        return None
    check_not_quantized(folder, read_json(folder / "config.json"))
    found = find_weights(folder, stem)
    for path in found.files:
        entries = tensor_entries(path)
        # Counters, such as a text encoder's `position_ids`, are whole numbers.
        weights = [name for name in entries if name.endswith((".weight", ".bias"))]
        check_plain(entries, path, needed=weights)
    return found.variant


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file of someone else; empty where there is none, or no mapping in it.

    Raises:
        FlowmapsrError: it is no JSON, or too deep to be settings.
    """
    try:
        values = from_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise FlowmapsrError(f"{path} cannot be read: {first_line(error)}") from error
    return values if isinstance(values, dict) else {}


def _explained(path: Path, error: Exception) -> str:
    """What a file is that is no safetensors file, and the fix."""
    if not path.is_file():
        return "is missing: restore the file, or name another one"
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as unreadable:
        return f"cannot be read ({unreadable.strerror}): check its permissions and its disk"
    if not start:
        return "is empty: download or copy it again"
    for beginning, what in _BEGINNINGS.items():
        if start.lstrip().startswith(beginning):
            return what
    size, whole = path.stat().st_size, _whole_size(path, start)
    if whole > size:
        return f"is truncated, {size:,} of {whole:,} bytes: download or copy it again"
    return f"is no safetensors file, or a damaged one ({first_line(error)}): download it again"


def _whole_size(path: Path, start: bytes) -> int:
    """How long the file would be by its header, if it begins like a safetensors file; else 0."""
    length = int.from_bytes(start[:_LENGTH], "little")
    if not start[_LENGTH:].startswith(b"{") or length > _LONGEST_HEADER:
        return 0
    with path.open("rb") as stream:
        header = stream.read(_LENGTH + length)[_LENGTH:]
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        ends = [entry["data_offsets"][1] for entry in tensors]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        ends = []
    return _LENGTH + length + max(ends, default=0)
