"""TIFF files of all depths and layouts are read as an independent writer made them, or refused."""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from datagen.photos.decode import ImageRejected, decode_image, decode_photo
from datagen.settings import ImageSettings
from tests.support.picture_files import saved

UNSUPPORTED = "unsupported pixel format"
HEIGHT, WIDTH = 24, 40
TYPES: dict[str, type[np.generic]] = {
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "int16": np.int16,
    "float16": np.float16,
    "float32": np.float32,
}


def _shades(channels: int) -> np.ndarray:
    """Ramps in [0, 1] (H, W, channels); the last of two or four is alpha, which is opaque."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramps = np.stack([x / WIDTH, y / HEIGHT, (x + y) / (WIDTH + HEIGHT)], axis=-1)
    colors = ramps[..., : {1: 1, 2: 1}.get(channels, 3)]
    opaque = np.ones((HEIGHT, WIDTH, 1))
    return np.concatenate([colors, opaque], axis=-1) if channels in (2, 4) else colors


def _written(shades: np.ndarray, kind: str, planes: str, compression: str | None) -> bytes:
    levels = shades * (np.iinfo(kind).max if kind[0] != "f" else 1)
    values = (levels.round() if kind[0] != "f" else levels).astype(TYPES[kind])
    channels = shades.shape[-1]
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        np.moveaxis(values, -1, 0)
        if planes == "separate"
        else values.squeeze(-1)
        if channels == 1
        else values,
        planarconfig=planes if channels > 1 else None,
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression=compression,
    )
    return stream.getvalue()


def test_every_layout_is_read_as_it_was_written_or_refused() -> None:
    read = set()
    layouts = itertools.product(TYPES, ("contig", "separate"), (1, 2, 3, 4), (None, "zlib"))
    for kind, planes, channels, compression in layouts:
        if channels == 1 and planes == "separate":
            continue
        shades = _shades(channels)
        data = _written(shades, kind, planes, compression)
        try:
            found = decode_photo(data, ImageSettings())
        except ImageRejected as error:
            assert error.reason == UNSUPPORTED
            continue
        colors = shades[..., :1].repeat(3, axis=-1) if channels < 3 else shades[..., :3]
        assert np.abs(found - colors * 255).max() < 1, (kind, planes, channels, compression)
        read.add((kind, planes, channels))
    common = {("uint8", "contig", 3), ("uint8", "contig", 1), ("uint16", "contig", 3)}
    assert read >= common | {("uint8", "separate", 3), ("uint16", "contig", 1)}
    assert {kind for kind, *_ in read} == {"uint8", "uint16"}


@pytest.mark.parametrize("bits", [12, 14])
def test_gray_of_other_depths_is_refused(bits: int) -> None:
    """Pillow reads 12 bits as if they were 16: nearly black."""
    pixels = bytes(range(256)) * 8
    entries = [
        *((256, 32), (257, 32), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 32)),
        (279, len(pixels)),
    ]
    start = 8 + len(pixels)
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries
    )
    data = b"II*\0" + struct.pack("<I", start) + pixels + directory + bytes(4)
    with pytest.raises(ImageRejected, match=UNSUPPORTED):
        decode_image(data)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_files_whose_decoder_reports_errors_are_damaged(
    compression: str, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pillow shows most of them in wrong colors, while libtiff writes to the terminal."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    grain = rng.normal(0, 4, (300, 400, 3))
    pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
    data = saved(Image.fromarray(pixels).convert(mode), "TIFF", compression=compression)
    whole = decode_photo(data, ImageSettings())
    shown = 0
    for place in range(1, 10):
        middle = len(data) * place // 10
        damaged = data[:middle] + bytes(512) + data[middle + 512 :]
        with pytest.raises(ImageRejected, match="^(damaged|corrupt)$") as error:
            decode_photo(damaged, ImageSettings())
        if error.value.reason == "damaged":
            shown += not np.array_equal(decode_image(damaged).rgb, whole)
    assert shown >= 7 or compression == "tiff_lzw"
    assert capfd.readouterr().err == ""
