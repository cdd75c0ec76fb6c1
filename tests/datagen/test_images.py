"""Every kind of image file becomes upright 8-bit sRGB, or a short reason."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from datagen.images import ImageRejected, decode_image, decode_photo, read_header


def _saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


@pytest.fixture
def pixels(photo: Any) -> np.ndarray:
    return photo(1, width=33, height=20)


def test_lossless_formats_are_exact(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        assert np.array_equal(decode_photo(_saved(image, format)), pixels)
        assert read_header(_saved(image, format)) == (33, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(pixels: np.ndarray, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _saved(Image.fromarray(pixels), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_photo(data), expected)
    assert read_header(data) == (expected.shape[1], expected.shape[0])


def test_grey_palette_alpha_and_bilevel_are_converted(pixels: np.ndarray) -> None:
    grey = Image.fromarray(pixels).convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    assert np.array_equal(decode_photo(_saved(grey)), expected)
    palette = Image.fromarray(pixels).quantize(16)
    assert np.array_equal(decode_photo(_saved(palette)), np.asarray(palette.convert("RGB")))
    opaque = Image.fromarray(pixels).convert("RGBA")
    assert np.array_equal(decode_photo(_saved(opaque)), pixels)
    bilevel = Image.fromarray(pixels).convert("1")
    assert set(np.unique(decode_photo(_saved(bilevel)))) == {0, 255}


def test_16_bit_grey_is_rescaled() -> None:
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    decoded = decode_photo(_saved(Image.fromarray(levels)))
    assert np.array_equal(decoded[..., 1].ravel(), np.arange(256))


def test_16_bit_colour_is_read() -> None:
    import cv2

    levels = np.random.default_rng(0).integers(0, 65536, (9, 8, 3), dtype=np.uint16)
    data = cv2.imencode(".png", levels[..., ::-1])[1].tobytes()
    assert np.abs(decode_photo(data).astype(int) - levels // 257).max() <= 1


def test_cmyk_is_converted(pixels: np.ndarray) -> None:
    decoded = decode_photo(_saved(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=98))
    assert np.abs(decoded.astype(int) - pixels).mean() < 4


def test_colour_profile_is_converted_to_srgb() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    odd = swapped.replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))
    decoded = decode_photo(_saved(Image.fromarray(red), icc_profile=odd))
    assert np.abs(decoded.astype(int) - red[..., ::-1]).max() <= 2  # its red is our blue
    broken = _saved(Image.fromarray(red), icc_profile=b"not a profile")
    assert np.array_equal(decode_photo(broken), red)
    same = _saved(Image.fromarray(red), icc_profile=srgb)
    assert np.array_equal(decode_photo(same), red)


def test_transparency_is_kept_for_those_who_want_it(pixels: np.ndarray) -> None:
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:5] = 10
    data = _saved(Image.fromarray(np.dstack([pixels, alpha])))
    decoded = decode_image(data)
    assert np.array_equal(decoded.rgb, pixels) and np.array_equal(decoded.alpha, alpha)
    with pytest.raises(ImageRejected, match="transparent"):
        decode_photo(data)


def test_bad_files_have_stable_reasons(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    frames = [Image.fromarray(np.roll(pixels, shift, axis=0)) for shift in (1, 2)]
    whole = _saved(image, "JPEG")
    reasons = {
        "empty file": b"",
        "not an image": b"GIF? no, just text",
        "truncated": whole[: len(whole) // 2],
        "animated": _saved(image, "GIF", save_all=True, append_images=frames),
        "too large": _bomb(),
    }
    for reason, data in reasons.items():
        with pytest.raises(ImageRejected) as error:
            decode_photo(data)
        assert error.value.reason == reason


def _bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_no_broken_file_gives_a_traceback(pixels: np.ndarray, format: str) -> None:
    whole = _saved(Image.fromarray(pixels), format)
    rng = np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for _ in range(rng.integers(0, 6)):
            broken[rng.integers(len(broken))] = rng.integers(256)
        for read in (decode_image, read_header):
            try:
                read(bytes(broken))
            except ImageRejected as error:
                assert error.reason in {
                    "not an image",
                    "truncated",
                    "corrupt",
                    "too large",
                    "animated",
                    "unsupported pixel format",
                }
