"""Decoding takes the memory that a photo's header tells, which is within what a worker reserves."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from datagen.photos.decode import ImageRejected, load_image, read_header, upright_photo
from datagen.photos.decoding_memory import CONVERTING_BYTES, RESERVED_BYTES, decoding_bytes
from datagen.photos.heic import HEIC_IS_READ
from datagen.settings import FilterSettings, ImageSettings
from tests.support.picture_files import (
    cmyk_profile,
    linear_gray_profile,
    saved,
    sixteen_bit_png,
    turned,
)

WIDTH, HEIGHT = 3200, 2500
PIXELS = WIDTH * HEIGHT
STRIPS = 20_000_000
"""Bytes that do not grow with the picture."""
SETTINGS = ImageSettings(transparent="white")
BEYOND = {"tiff of 16 bits with alpha", "tiff in one strip", "tiff that is turned", "avif alpha"}
"""Kinds that take more than is reserved for each of their pixels."""


def _tiff(levels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, levels, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def _odd_profile() -> bytes:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))


def _files(width: int, height: int) -> Iterator[tuple[str, bytes]]:
    pixels = np.full((height, width, 3), (200, 90, 30), np.uint8)
    pixels[: height // 2] = 7
    color = Image.fromarray(pixels)
    gray, palette = color.convert("L"), color.quantize(8)
    clear = np.dstack([pixels, np.full((height, width), 99, np.uint8)])
    rgba = Image.fromarray(clear)
    deep, deep_clear = pixels.astype(np.uint16) * 257, clear.astype(np.uint16) * 257
    yield "jpeg", saved(color, "JPEG")
    yield "jpeg that is turned", turned(pixels, 6)
    yield "jpeg with a profile", saved(color, "JPEG", icc_profile=_odd_profile())
    yield "jpeg that is progressive", saved(color, "JPEG", progressive=True, subsampling=0)
    cmyk = color.convert("CMYK")
    yield "jpeg in cmyk", saved(cmyk, "JPEG", icc_profile=cmyk_profile(128))
    yield "png", saved(color, compress_level=1)
    yield "png alpha", saved(rgba, compress_level=1)
    yield "png alpha that is turned", turned(clear, 6, "PNG", compress_level=1)
    yield "png gray alpha", saved(rgba.convert("LA"), compress_level=1)
    yield "png palette", saved(palette, compress_level=1)
    yield "png palette alpha", saved(palette, compress_level=1, transparency=bytes(range(8)))
    yield "png color key", saved(color, compress_level=1, transparency=(7, 7, 7))
    yield "png gray profile", saved(gray, compress_level=1, icc_profile=linear_gray_profile())
    yield "png of 16 bits", sixteen_bit_png(deep)
    yield "png gray of 16 bits", sixteen_bit_png(deep[..., 0].copy())
    yield "webp", saved(color, "WEBP", method=0)
    yield "webp alpha", saved(rgba, "WEBP", method=0)
    yield "webp lossless", saved(color, "WEBP", lossless=True, method=0)
    yield "avif", saved(color, "AVIF", speed=10)
    yield "avif alpha", saved(rgba, "AVIF", speed=10, subsampling="4:4:4")
    yield "gif", saved(palette, "GIF", transparency=3)
    yield "bmp", saved(color, "BMP")
    yield "tiff", saved(color, "TIFF")
    yield "tiff alpha", saved(rgba, "TIFF")
    yield "tiff cmyk", saved(cmyk, "TIFF")
    yield "tiff that is turned", turned(pixels, 6, "TIFF")
    yield "tiff jpeg", saved(color, "TIFF", compression="jpeg")
    yield "tiff of 16 bits", _tiff(deep, photometric="rgb")
    yield "tiff gray of 16 bits", _tiff(deep[..., 0].copy(), photometric="minisblack")
    alpha = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    yield "tiff of 16 bits with alpha", _tiff(deep_clear, **alpha)
    one = {"compression": "zlib", "rowsperstrip": height}
    yield "tiff in one strip", _tiff(deep_clear, **alpha, **one)
    if HEIC_IS_READ:
        yield "heic", saved(color, "HEIF", quality=50)
        yield "heic alpha", saved(rgba, "HEIF", quality=50)


def _memory(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def _peak(work: Callable[[], object]) -> int:
    """Bytes above those in use before, file and result included."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    work()
    return _memory("VmHWM") - before


def _measure() -> None:
    """A line for each kind: its name, what its header tells with its file, what it took."""

    def decode(path: Path) -> None:
        image = load_image(path.read_bytes(), SETTINGS)
        assert upright_photo(image, SETTINGS).size == 3 * PIXELS

    place = Path(sys.argv[1])
    for (name, data), (_, small) in zip(_files(WIDTH, HEIGHT), _files(64, 48), strict=True):
        place.write_bytes(data)
        with Image.open(place) as image:
            told = decoding_bytes(image, data[:65536]) + len(data)
        del data
        upright_photo(load_image(small, SETTINGS), SETTINGS)  # tables and libraries
        print(json.dumps([name, told, _peak(lambda: decode(place))]))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_every_kind_takes_what_its_header_tells(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path / "photo")]
    root = str(Path(__file__).parents[3])
    # Freed memory goes back at once, so that each kind is measured by itself.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "PYTHONPATH": root}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(lines) == 31 + 2 * HEIC_IS_READ
    for name, told, took in lines:
        promised = max(told, CONVERTING_BYTES * PIXELS)
        assert took < promised + STRIPS, (name, took / PIXELS, promised / PIXELS)
        assert (promised > RESERVED_BYTES * PIXELS * 1.02) == (name in BEYOND), name


def test_what_takes_more_than_is_reserved_is_too_large() -> None:
    deep = b"P6 200 100 65535\n" + bytes(200 * 100 * 6)

    def look(data: bytes, megapixels: float) -> tuple[int, int]:
        filters = FilterSettings(max_megapixels=megapixels)
        return read_header(data[:65536], size=len(data), images=SETTINGS, filters=filters)

    assert look(deep, 0.04) == (200, 100)
    for data, megapixels in ((deep, 0.03), (b"II*\0" + bytes(400_000), 0.03)):
        with pytest.raises(ImageRejected, match="^too large$"):
            look(data, megapixels)


if __name__ == "__main__":
    _measure()
