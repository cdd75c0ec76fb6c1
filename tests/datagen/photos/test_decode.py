"""Every kind of image file becomes upright 8-bit sRGB, or a short reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from datagen.build.in_process import build_in_process
from datagen.photos.decode import ImageRejected, check_pixels, decode_image, decode_photo
from datagen.photos.quality import sharpness
from datagen.settings import FilterSettings, ImageSettings
from tests.support.picture_files import (
    animation,
    cmyk_profile,
    linear_gray_profile,
    png_bomb,
    saved,
    sixteen_bit_png,
    sixteen_bit_tiff,
    turned,
)

PLAIN = ImageSettings()


def reason(data: bytes, **images: Any) -> str:
    with pytest.raises(ImageRejected) as error:
        decode_photo(data, ImageSettings(**images))
    return error.value.reason


@pytest.fixture
def pixels(photo: Any) -> np.ndarray:
    return photo(1, width=33, height=20)


def test_lossless_formats_are_exact(pixels: np.ndarray) -> None:
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        assert np.array_equal(decode_photo(saved(Image.fromarray(pixels), format), PLAIN), pixels)
    data = saved(Image.fromarray(pixels), "WEBP", lossless=True)
    assert np.array_equal(decode_photo(data, PLAIN), pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_files_that_decoders_warn_of_are_damaged(photo: Any, options: dict[str, Any]) -> None:
    data = saved(Image.fromarray(photo(2, width=400, height=300)), "JPEG", quality=95, **options)
    middle = len(data) // 2
    damaged = data[:middle] + bytes(512) + data[middle + 512 :]
    assert decode_photo(data, PLAIN).shape == (300, 400, 3)
    assert reason(damaged) == "damaged"
    accepted = decode_photo(damaged, ImageSettings(damaged="accept"))
    assert accepted.shape == decode_image(damaged).rgb.shape == (300, 400, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(pixels: np.ndarray, orientation: int, format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = turned(pixels, orientation, format, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if format == "TIFF":  # Pillow turns these when it loads them
        image = Image.open(io.BytesIO(data))
        image.load()
        expected = image
    assert np.array_equal(decode_photo(data, PLAIN), np.asarray(expected))
    assert (expected.width < expected.height) == (orientation >= 5)


def test_gray_palette_alpha_and_bilevel_are_converted(pixels: np.ndarray) -> None:
    gray = Image.fromarray(pixels).convert("L")
    expected = np.repeat(np.asarray(gray)[..., None], 3, axis=2)
    assert np.array_equal(decode_photo(saved(gray), PLAIN), expected)
    palette = Image.fromarray(pixels).quantize(16)
    assert np.array_equal(decode_photo(saved(palette), PLAIN), np.asarray(palette.convert("RGB")))
    opaque = Image.fromarray(pixels).convert("RGBA")
    assert np.array_equal(decode_photo(saved(opaque), PLAIN), pixels)
    bilevel = Image.fromarray(pixels).convert("1")
    assert set(np.unique(decode_photo(saved(bilevel), PLAIN))) == {0, 255}


@pytest.mark.parametrize("make", [sixteen_bit_png, sixteen_bit_tiff])
def test_16_bits_become_8_or_are_rejected(make: Any) -> None:
    gray = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(decode_photo(make(gray), PLAIN)[..., 1].ravel(), np.arange(256))
    color = np.random.default_rng(0).integers(0, 65536, (9, 8, 3), dtype=np.uint16)
    assert np.abs(decode_photo(make(color), PLAIN).astype(int) - color // 257).max() <= 1
    for levels in (gray, color):
        assert reason(make(levels), sixteen_bit="reject") == "16 bit"
    eight = color.astype(np.uint8)
    assert np.array_equal(decode_photo(make(eight), ImageSettings(sixteen_bit="reject")), eight)


def test_16_bit_netpbm_becomes_8_bit_or_is_rejected() -> None:
    data = b"P6 2 2 65535\n" + bytes(range(24))
    decode_photo(data, PLAIN)
    assert reason(data, sixteen_bit="reject") == "16 bit"
    gray = b"P5 4 3 65535\n" + bytes(range(24))
    assert reason(gray, sixteen_bit="reject") == "16 bit"


def test_cmyk_is_converted_or_rejected(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels).convert("CMYK")
    decoded = decode_photo(saved(image, "JPEG", quality=98), PLAIN)
    assert np.abs(decoded.astype(int) - pixels).mean() < 4
    assert np.array_equal(
        decode_photo(saved(image, "TIFF"), PLAIN), np.asarray(image.convert("RGB"))
    )
    assert reason(saved(image, "JPEG"), cmyk="reject") == "cmyk"


def test_gray_can_be_rejected(pixels: np.ndarray) -> None:
    gray = Image.fromarray(pixels).convert("L")
    for data in (saved(gray), saved(gray, "JPEG"), saved(gray.convert("LA")), saved(gray, "TIFF")):
        assert reason(data, gray="reject") == "gray"
    assert len(decode_photo(saved(Image.fromarray(pixels)), ImageSettings(gray="reject")))


def _srgb(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: light in [0, 1] to 8-bit levels."""
    curved = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * curved)


def test_a_gray_profile_is_converted() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = _srgb(levels / 255)
    data = saved(Image.fromarray(levels), icc_profile=linear_gray_profile())
    assert np.abs(decode_photo(data, PLAIN) - expected[..., None]).max() <= 1
    # 16 bits, and an alpha channel, go through the profile too.
    deep = saved(Image.fromarray(levels.astype(np.uint16) * 257), icc_profile=linear_gray_profile())
    assert np.abs(decode_photo(deep, PLAIN) - expected[..., None]).max() <= 1
    with_alpha = Image.fromarray(levels).convert("LA")
    data = saved(with_alpha, icc_profile=linear_gray_profile())
    assert np.abs(decode_photo(data, PLAIN) - expected[..., None]).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_a_cmyk_profile_is_converted(format: str) -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, 8:, 0] = 255
    image = Image.fromarray(inks, "CMYK")
    data = saved(image, format, icc_profile=cmyk_profile(128))
    decoded = decode_photo(data, PLAIN)
    lightness = 128 / 255 * 100
    expected = _srgb(np.array(((lightness + 16) / 116) ** 3))  # CIE 15: L* to Y
    assert np.abs(decoded[:, :7].astype(int) - 255).max() <= 1
    assert np.abs(decoded[:, 9:].astype(int) - int(expected)).max() <= 2
    without = decode_photo(saved(image, format), PLAIN)
    assert tuple(without[0, 15]) == (0, 255, 255), "pure cyan where no profile tells of the ink"


def test_a_color_profile_is_converted() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    odd = swapped.replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))
    decoded = decode_photo(saved(Image.fromarray(red), icc_profile=odd), PLAIN)
    assert np.abs(decoded.astype(int) - red[..., ::-1]).max() <= 2  # its red is our blue
    for profile in (b"not a profile", srgb, linear_gray_profile(), cmyk_profile(9)):
        data = saved(Image.fromarray(red), icc_profile=profile)
        assert np.array_equal(decode_photo(data, PLAIN), red), "broken, sRGB, or of other pixels"


def test_transparency_is_kept_by_decode_image(pixels: np.ndarray) -> None:
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:5] = 10
    data = saved(Image.fromarray(np.dstack([pixels, alpha])))
    decoded = decode_image(data)
    assert np.array_equal(decoded.rgb, pixels) and np.array_equal(decoded.alpha, alpha)
    assert reason(data) == "transparent"


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_transparency_is_composited_over_a_background(
    pixels: np.ndarray, background: str, level: int
) -> None:
    alpha = np.random.default_rng(2).integers(0, 256, pixels.shape[:2], dtype=np.uint8)
    data = saved(Image.fromarray(np.dstack([pixels, alpha])))
    weight = alpha[..., None] / 255
    expected = pixels * weight + level * (1 - weight)
    decoded = decode_photo(data, ImageSettings(transparent=background))
    assert np.abs(decoded - expected).max() <= 0.5 + 1e-9


def test_transparent_palettes_and_color_keys_are_detected(pixels: np.ndarray) -> None:
    palette = Image.fromarray(pixels).quantize(16)
    clear = int(np.asarray(palette)[0, 0])
    key = tuple(int(level) for level in pixels[0, 0])
    files = {
        "palette": saved(palette, transparency=clear),
        "gif": saved(palette, "GIF", transparency=clear),
        "color key": saved(Image.fromarray(pixels), transparency=key),
        "gray key": saved(Image.fromarray(pixels[..., 0]), transparency=int(pixels[0, 0, 0])),
        "gray alpha": saved(Image.fromarray(pixels).convert("LA").point(lambda level: level // 2)),
        "webp": saved(Image.fromarray(pixels).convert("RGBA").point(lambda v: v // 2), "WEBP"),
    }
    for name, data in files.items():
        assert reason(data) == "transparent", name
        laid = decode_photo(data, ImageSettings(transparent="white"))
        assert laid.shape == pixels.shape, name
        if "key" in name or name in ("palette", "gif"):
            assert tuple(laid[0, 0]) == (255, 255, 255), name
    opaque = saved(palette, transparency=bytes([255] * 16))
    assert np.array_equal(decode_photo(opaque, PLAIN), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_are_rejected_or_give_their_first_frame(pixels: np.ndarray, format: str) -> None:
    data = animation(pixels, format)
    assert reason(data) == "animated"
    first = decode_photo(data, ImageSettings(animated="first_frame"))
    if format == "GIF":  # 256 colors
        assert np.abs(first.astype(int) - pixels).mean() < 6
    else:
        assert np.array_equal(first, pixels)


def test_a_phones_mpo_is_its_first_picture(pixels: np.ndarray) -> None:
    other = Image.fromarray(255 - pixels)
    data = saved(Image.fromarray(pixels), "MPO", save_all=True, append_images=[other], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.abs(decode_photo(data, PLAIN).astype(int) - pixels).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_what_an_independent_decoder_makes_of_it(photo: Any, orientation: int) -> None:
    options = {"quality": 95, "subsampling": "4:4:4"}
    data = turned(photo(3, width=66, height=40), orientation, "AVIF", **options)
    lying = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)  # turns none
    expected = decode_photo(turned(lying, orientation, "PNG"), PLAIN)
    found = decode_photo(data, PLAIN)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 1
    clear = Image.fromarray(np.dstack([photo(3), np.full((80, 96), 9, np.uint8)]))
    assert reason(saved(clear, "AVIF")) == "transparent"
    assert reason(data[: len(data) // 2]) in ("truncated", "corrupt")
    assert reason(animation(photo(3), "AVIF")) == "animated"


def test_every_suffix_that_is_listed_can_be_read(recipe: Any, photos: Path, photo: Any) -> None:
    """A folder of the kinds that Pillow can write, under each name that is in use for them."""
    formats = {".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "MPO", ".apng": "PNG", ".avif": "AVIF",
               ".pnm": "PPM", ".pbm": "PPM"}  # fmt: skip
    for seed, (suffix, format) in enumerate(formats.items()):
        image = Image.fromarray(photo(70 + seed))
        image = image.convert("1") if suffix == ".pbm" else image
        (photos / f"x{suffix}").write_bytes(saved(image, format))
    assert build_in_process(recipe()).num_samples == 2 * (9 + len(formats))


def test_bad_files_have_stable_reasons(pixels: np.ndarray) -> None:
    whole = saved(Image.fromarray(pixels), "JPEG")
    floats = saved(Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF")
    assert reason(b"") == "empty file"
    assert reason(b"GIF? no, just text") == "not an image"
    assert reason(whole[: len(whole) // 2]) == "truncated"
    assert reason(whole[:100]) == "truncated"
    assert reason(whole[:3]) == "truncated"
    assert reason(png_bomb()) == "too large"
    assert reason(floats) == "unsupported pixel format"
    assert reason(saved(Image.new("LAB", (9, 9)), "TIFF")) == "unsupported pixel format"


def test_a_decompression_bomb_in_the_text_of_a_png_is_rejected(pixels: np.ndarray) -> None:
    import zlib

    from tests.support.picture_files import png_chunk

    data = saved(Image.fromarray(pixels))
    bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70_000_000), 9))
    assert reason(data[:33] + bomb + data[33:]) == "too large"


def test_sharpness_does_not_depend_on_the_size() -> None:
    rng = np.random.default_rng(4)
    noise = np.repeat(rng.normal(128, 20, (512, 512, 1)), 3, axis=2).round().astype(np.uint8)
    # White noise of variance v: the Laplacian's variance is v (4 * 1 + 16) = 20 v.
    assert sharpness(noise) == pytest.approx(20 * noise.var(), rel=0.02)
    large = cv2.resize(noise, (2048, 2048), interpolation=cv2.INTER_NEAREST)
    assert sharpness(large) == pytest.approx(sharpness(noise), rel=1e-9)
    assert sharpness(np.full((9, 9, 3), 7, np.uint8)) == 0


def test_blurred_photos_are_rejected(photo: Any) -> None:
    sharp = photo(3, width=512, height=512)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3)
    filters = FilterSettings(min_sharpness=(sharpness(sharp) * sharpness(blurred)) ** 0.5)
    check_pixels(sharp, filters)
    check_pixels(blurred, FilterSettings())
    with pytest.raises(ImageRejected, match="^blurred$"):
        check_pixels(blurred, filters)
