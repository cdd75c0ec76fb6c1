"""What a file of weights is, by its content, whatever its name; which files a folder holds."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from datagen.errors import FlowmapsrError
from datagen.io.weight_files import find_weights, read_json, tensor_entries

WHOLE = safetensors.numpy.save({"a": np.zeros((3, 2), np.float32)})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 5135149760\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: download"),
        (WHOLE[:5], "is no safetensors file"),
        (WHOLE[:20], r"is truncated, 20 of 72 bytes"),
        (WHOLE[:-1], f"is truncated, {len(WHOLE) - 1} of {len(WHOLE)} bytes"),
        (POINTER, "is a Git LFS pointer, not the weights: run 'git lfs pull'"),
        (pickle.dumps({"a": 1}), "is a Python pickle; only safetensors are read, because"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "is a web page, .* with your access token"),
        (b'{"error": "Access denied"}', "is JSON text, not weights"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file, whose weights are quantized"),
        (bytes(range(7, 200)), "is no safetensors file, or a damaged one"),
    ],
)
@pytest.mark.parametrize("name", ["unet.safetensors", "unet.ckpt"])
def test_a_file_that_holds_no_weights_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FlowmapsrError, match=message):
        tensor_entries(path)


def test_a_zip_archive_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    with pytest.raises(FlowmapsrError, match=r"is a zip archive, as torch\.save writes it"):
        tensor_entries(path)


def test_weights_of_any_name_are_read(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WHOLE)
    assert tensor_entries(tmp_path / "weights.bin")["a"].shape == (3, 2)


def test_the_files_without_a_variant_come_first_and_one_before_its_average_last(
    tmp_path: Path,
) -> None:
    for name in ("m.non_ema.safetensors", "m.fp16-00001-of-00002.safetensors", "m.bin"):
        (tmp_path / name).write_bytes(WHOLE)
    assert find_weights(tmp_path, "m").variant == "non_ema"
    parts = {"a": "m.fp16-00001-of-00002.safetensors", "b": "m.fp16-00002-of-00002.safetensors"}
    index = tmp_path / "m.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": parts}))
    found = find_weights(tmp_path, "m")
    assert (found.variant, [path.name for path in found.files]) == ("fp16", list(parts.values()))
    (tmp_path / "m.safetensors").write_bytes(WHOLE)
    assert find_weights(tmp_path, "m").files == (tmp_path / "m.safetensors",)


def test_an_index_that_lists_nothing_is_named(tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text("[]")
    with pytest.raises(FlowmapsrError, match=r"index\.json is no index of weights"):
        find_weights(tmp_path, "m")
    index.write_text("{")
    with pytest.raises(FlowmapsrError, match=r"index\.json cannot be read"):
        find_weights(tmp_path, "m")


def test_settings_that_nest_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a":' * 100_000)
    with pytest.raises(FlowmapsrError, match=r"config\.json cannot be read: .*recursion"):
        read_json(path)
