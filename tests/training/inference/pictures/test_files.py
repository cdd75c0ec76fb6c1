"""What a file keeps of a picture's pixels: bits, transparency, and which way is up."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.support.picture_files import saved, sixteen_bit_png, sixteen_bit_tiff, turned
from tests.training.inference.pictures.rereading import FORMATS, loss, reread
from training.inference.pictures.decode import Picture, read_picture
from training.inference.pictures.encode import encode


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "P"])
def test_pictures_of_8_bits_are_kept_and_losses_told(
    colors: np.ndarray, format: str, mode: str
) -> None:
    image = Image.fromarray(colors)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.quantize(64) if mode == "P" else image.convert(mode)
    picture = read_picture(saved(image))
    kept, notes = reread(picture, format)
    assert kept.rgb.dtype == np.uint8
    assert format == "WebP" or kept.gray == (mode in ("L", "LA"))  # WebP has colors only
    if format == "JPEG" and mode in ("LA", "RGBA"):
        assert notes == ["its transparency became white, as JPEG has none"]
        assert kept.alpha is None and kept.rgb[0].min() > 240
        return
    assert notes == []
    if format in ("PNG", "TIFF"):
        assert np.array_equal(kept.rgb, picture.rgb)
    assert np.abs(kept.rgb.astype(int) - picture.rgb).mean() < 4
    if picture.alpha is None:
        assert kept.alpha is None
    else:
        assert kept.alpha is not None and loss(kept.alpha, picture.alpha) <= 2


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_kept_or_told(format: str, channels: int) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    picture = read_picture(sixteen_bit_png(levels[..., 0] if channels == 1 else levels[..., :3]))
    assert np.array_equal(picture.rgb, np.broadcast_to(levels[..., :3], (9, 7, 3)))
    alpha = levels[..., 3] if channels == 4 else None
    picture = Picture(picture.rgb, alpha, picture.gray, picture.metadata)
    kept, notes = reread(picture, format)
    if format in ("PNG", "TIFF"):
        assert notes == [] and np.array_equal(kept.rgb, picture.rgb)
        assert kept.gray == (channels == 1)
        assert alpha is None or np.array_equal(kept.alpha, alpha)
    else:
        assert f"its 16 bits became 8, which is what {format} is written with" in notes


def test_16_bits_of_tiff_lie_as_they_are_shown() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (4, 6, 3), dtype=np.uint16)
    assert np.array_equal(read_picture(sixteen_bit_tiff(levels)).rgb, levels)


def test_an_orientation_is_undone_in_the_pixels(colors: np.ndarray) -> None:
    picture = read_picture(turned(colors, 6, "PNG"))
    assert np.array_equal(picture.rgb, np.rot90(colors, -1))
    written = Image.open(io.BytesIO(encode(picture, "PNG")[0]))
    assert ExifTags.Base.Orientation not in written.getexif()


def _levels_of(bits: int) -> np.ndarray:
    """A picture (40, 61, 3) of colors that 8 bits do not have."""
    top = (1 << bits) - 1
    down, right = np.mgrid[0:40, 0:61]
    return np.stack([right * top // 60, down * top // 39, top - right - down], -1).astype(np.uint16)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("alpha", [False, True])
def test_all_bits_of_avif_are_read(bits: int, alpha: bool) -> None:
    levels = _levels_of(bits)
    given = np.dstack([levels, levels[..., 0]]) if alpha else levels
    bgr = given[..., [2, 1, 0, 3][: given.shape[2]]]
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100]
    picture = read_picture(cv2.imencode(".avif", bgr, options)[1].tobytes())
    exact = levels * (65535 / ((1 << bits) - 1))
    assert picture.rgb.dtype == np.uint16 and picture.notes == ()
    assert np.abs(picture.rgb - exact).max() <= 0.5  # of 16 bits, as the file loses nothing
    if alpha:
        assert picture.alpha is not None
        assert np.abs(picture.alpha - exact[..., 0]).max() <= 0.5


@pytest.mark.parametrize("chroma", [420, 444])
def test_all_bits_of_heic_are_read(chroma: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    levels = (_levels_of(10) << 6).astype(np.uint16)
    image = pillow_heif.from_bytes(mode="RGB;16", size=(61, 40), data=levels.tobytes())
    stream = io.BytesIO()
    image.save(stream, quality=-1, chroma=chroma)
    picture = read_picture(stream.getvalue())
    assert picture.rgb.dtype == np.uint16 and picture.rgb.shape == (40, 61, 3)
    exact = _levels_of(10) * (65535 / 1023)
    if chroma == 444:
        assert np.abs(picture.rgb - exact).mean() < 257 / 4  # which rounding to 8 bits has
    assert picture.notes == () and len(np.unique(picture.rgb[0])) > 61
