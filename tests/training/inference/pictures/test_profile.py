"""Color profiles: pictures keep theirs, and colors are converted as LittleCMS does."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.support.picture_files import (
    cmyk_profile,
    linear_gray_profile,
    png_chunk,
    saved,
)
from tests.training.inference.pictures.rereading import FORMATS, loss, reread
from training.inference.pictures.decode import Picture, read_picture
from training.inference.pictures.encode import encode
from training.inference.pictures.metadata import Metadata
from training.inference.pictures.profile import WideProfile, converted, srgb, srgb_profile

ADOBE_RGB = {
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}
LINEAR = np.linspace(0, 1, 65536, dtype=np.float32)


def wide_profile() -> bytes:
    """Of a screen with other primaries than sRGB and a gamma of 2.2."""
    profile = bytearray(srgb_profile().tobytes())
    for index in range(int.from_bytes(profile[128:132], "big")):
        at = 132 + 12 * index
        name, start = bytes(profile[at : at + 4]), int.from_bytes(profile[at + 4 : at + 8], "big")
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            profile[start : start + 14] = b"curv" + bytes(4) + b"\0\0\0\1" + b"\x02\x33"
        if name in ADOBE_RGB:
            values = b"".join(round(65536 * v).to_bytes(4, "big") for v in ADOBE_RGB[name])
            profile[start + 8 : start + 20] = values
        if name == b"desc":
            profile[start : start + 4] = b"none"
    return bytes(profile)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_profile_is_kept_and_its_colors_with_it(
    colors: np.ndarray, format: str, deep: bool
) -> None:
    """Levels that a program sees that reads the profile, and those that one sees that does not."""
    profile = wide_profile()
    file = saved(Image.fromarray(colors), icc_profile=profile)
    picture = read_picture(file)
    if deep:
        picture = read_picture(encode(deepened(colors, profile), "TIFF")[0])
    assert picture.rgb.dtype == (np.uint16 if deep else np.uint8)
    data, notes = encode(picture, format)
    assert deep or notes == []
    written = Image.open(io.BytesIO(data))
    assert written.info["icc_profile"] == profile
    allowed = 2 if format in ("PNG", "TIFF") else 9
    assert loss(np.asarray(written.convert("RGB")), colors) <= allowed
    eight = picture.rgb // 257 if deep else picture.rgb
    assert loss(eight, colors) > 5  # the profile matters


def deepened(colors: np.ndarray, profile: bytes) -> Picture:
    """The colors, meant in the profile, as a picture of 16 bits."""
    source = WideProfile.of(profile)
    assert source is not None
    levels = converted(colors.astype(np.uint16) * np.uint16(257), source, srgb())
    return Picture(levels, None, False, Metadata(profile=profile))


def test_16_bits_convert_as_littlecms_does(colors: np.ndarray) -> None:
    profile = wide_profile()
    source = WideProfile.of(profile)
    assert source is not None
    ours = converted(colors.astype(np.uint16) * np.uint16(257), source, srgb())
    theirs = ImageCms.profileToProfile(
        Image.fromarray(colors), ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb_profile()
    )
    assert theirs is not None and loss(np.round(ours / 257), np.asarray(theirs)) <= 1
    levels = np.random.default_rng(0).integers(0, 65536, (50, 60, 3), dtype=np.uint16)
    assert loss(converted(levels, srgb(), srgb()), levels) == 0
    linear = converted(levels, srgb(), WideProfile(srgb().matrix, np.stack([LINEAR] * 3)))
    light = levels / 65535
    closed = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    assert loss(linear, np.round(65535 * closed)) <= 2


def test_a_profile_of_gray_levels_is_kept(colors: np.ndarray) -> None:
    gray = colors[..., 0]
    picture = read_picture(saved(Image.fromarray(gray), icc_profile=linear_gray_profile()))
    assert picture.gray and loss(picture.rgb[..., 0], gray) > 10
    written = Image.open(io.BytesIO(encode(picture, "PNG")[0]))
    assert written.mode == "L" and loss(np.asarray(written), gray) <= 1
    deep = replace(picture, rgb=picture.rgb.astype(np.uint16) * np.uint16(257))
    kept, notes = reread(deep, "PNG")
    assert notes == [] and kept.gray and loss(kept.rgb, deep.rgb) <= 2


def test_cmyk_is_read_and_that_it_is_not_written_is_told(colors: np.ndarray) -> None:
    image = Image.fromarray(colors).convert("CMYK")
    picture = read_picture(saved(image, "TIFF", icc_profile=cmyk_profile(128)))
    kept, _ = reread(picture, "JPEG")
    assert picture.notes == ("its CMYK colors become sRGB",)
    assert kept.metadata.profile is None and loss(kept.rgb, picture.rgb) < 20


def test_a_broken_profile_is_left_out_and_told(colors: np.ndarray) -> None:
    picture = read_picture(saved(Image.fromarray(colors), icc_profile=b"no profile" * 20))
    kept, notes = reread(picture, "PNG")
    assert kept.metadata.profile is None and np.array_equal(kept.rgb, colors)
    assert notes == ["its color profile cannot be written to and is left out: the colors are sRGB"]


def test_16_bits_with_a_profile_of_tables_are_read_with_8_and_that_is_told() -> None:
    profile = bytearray(wide_profile())
    count = int.from_bytes(profile[128:132], "big")
    names = [bytes(profile[132 + 12 * n : 136 + 12 * n]) for n in range(count)]
    at = 132 + 12 * names.index(b"cprt")
    profile[at : at + 4] = b"A2B0"
    levels = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    file = encode(Picture(levels, None, False, Metadata()), "TIFF")[0]
    tagged = Picture(levels, None, False, Metadata(profile=bytes(profile)))
    data, notes = encode(tagged, "PNG")
    assert "its color profile cannot be written to" in notes[0]
    assert read_picture(data).rgb.dtype == read_picture(file).rgb.dtype == np.uint16
    header = 33
    chunk = png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(bytes(profile)))
    picture = read_picture(data[:header] + chunk + data[header:])
    assert picture.rgb.dtype == np.uint8
    assert picture.notes == ("only 8 of its bits are read: its color profile is a table",)
