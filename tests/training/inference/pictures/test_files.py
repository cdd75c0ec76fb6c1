"""What a file keeps of a picture: bits, colors, transparency, profile, EXIF, XMP and resolution."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from tests.support.models import saved_model
from tests.support.picture_files import (
    cmyk_profile,
    linear_gray_profile,
    png_chunk,
    saved,
    sixteen_bit_png,
    sixteen_bit_tiff,
    turned,
)
from training.inference.pictures.decode import Picture, read_picture
from training.inference.pictures.encode import encode
from training.inference.pictures.metadata import Metadata, made_by, without_gps
from training.inference.pictures.pixels import colors_everywhere
from training.inference.pictures.profile import WideProfile, converted, srgb, srgb_profile
from training.inference.upscaler import Upscaler
from training.settings.model import ModelSettings

FORMATS = ("PNG", "JPEG", "TIFF", "WebP", "AVIF")
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


@pytest.fixture
def colors() -> np.ndarray:
    """uint8 (24, 36, 3), smooth and not saturated."""
    coarse = np.random.default_rng(0).integers(90, 170, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (36, 24), interpolation=cv2.INTER_LINEAR)


def reread(picture: Picture, format: str, **options: Any) -> tuple[Picture, list[str]]:
    data, notes = encode(picture, format, **options)
    return read_picture(data), notes


def loss(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second).max())


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


XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:RDF><rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 tiff:Orientation="6" exif:GPSLatitude="1,2N" dc:title="harbor"><exif:PixelXDimension>36
</exif:PixelXDimension></rdf:Description></rdf:RDF></x:xmpmeta>"""


def photo_of(colors: np.ndarray, format: str) -> bytes:
    """A file with all that a camera writes."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Maker"
    exif.update({282: 300.0, 283: 300.0, 296: 2})
    exif.get_ifd(ExifTags.IFD.Exif).update({0xA002: 36, 0xA003: 24, 33434: 0.02})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N"})
    options: dict[str, Any] = {"exif": exif, "dpi": (300, 300)}
    if format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)
    else:
        options["xmp"] = XMP.encode()
    return saved(Image.fromarray(colors), format, **options)


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WebP", "AVIF"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_exif_xmp_and_resolution_are_kept_but_for_what_changed(
    colors: np.ndarray, source: str, format: str, deep: bool
) -> None:
    picture = read_picture(photo_of(colors, source))
    assert picture.rgb.shape == (36, 24, 3)  # upright
    if deep:
        rgb = picture.rgb.astype(np.uint16) * np.uint16(257)
        picture = Picture(rgb, None, False, picture.metadata)
    made = made_by(made_by(picture.metadata, {"scale": "3"}), {"scale": "4"})
    data, _ = encode(Picture(picture.rgb, None, False, made), format)
    for metadata in (read_picture(data).metadata, without_gps(read_picture(data).metadata)):
        assert metadata.exif[ExifTags.Base.Make] == "Maker"
        assert metadata.xmp is not None and "harbor" in metadata.xmp
        assert "Orientation" not in metadata.xmp and "Dimension" not in metadata.xmp
        details = metadata.exif[ExifTags.IFD.Exif]
        assert float(details[33434]) == pytest.approx(0.02) and 0xA002 not in details
    assert ExifTags.IFD.GPSInfo not in metadata.exif and "GPS" not in metadata.xmp
    written = Image.open(io.BytesIO(data))
    assert written.size == (24, 36) and written.getexif().get(274, 1) == 1
    assert written.getexif()[282] == pytest.approx(300, abs=0.1)
    if format in ("PNG", "JPEG", "TIFF"):
        assert written.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    packet = written.info.get("xmp") or written.info["XML:com.adobe.xmp"].encode()
    assert packet.count(b'flowmapsr:scale="') == 1 or b'scale="4"' in packet
    assert ExifTags.IFD.GPSInfo in read_picture(data).metadata.exif


@pytest.mark.parametrize("xmp", [b"<x", b"<a/>", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'])
def test_broken_xmp_and_exif_are_left_out_and_told(colors: np.ndarray, xmp: bytes) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 40
    picture = read_picture(saved(Image.fromarray(colors), "JPEG", xmp=xmp, exif=exif))
    assert picture.metadata.xmp is None
    assert "its XMP data is broken and left out" in picture.notes
    assert not encode(picture, "JPEG")[1]


def test_a_broken_profile_is_left_out_and_told(colors: np.ndarray) -> None:
    picture = read_picture(saved(Image.fromarray(colors), icc_profile=b"no profile" * 20))
    kept, notes = reread(picture, "PNG")
    assert kept.metadata.profile is None and np.array_equal(kept.rgb, colors)
    assert notes == ["its color profile cannot be written to and is left out: the colors are sRGB"]


def test_the_photos_of_phones_keep_their_exif(colors: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Phone"
    picture = read_picture(saved(Image.fromarray(colors), "HEIF", exif=exif.tobytes(), quality=90))
    assert picture.metadata.exif[ExifTags.Base.Make] == "Phone" and loss(picture.rgb, colors) < 20


@pytest.mark.parametrize("deep", [False, True])
def test_what_is_hidden_does_not_shine_through(
    tmp_path: Path, tiny_model: ModelSettings, deep: bool
) -> None:
    """An opaque disc on nothing, enlarged, over black and over white: no seam of what a file has
    where nothing is seen."""
    y, x = np.mgrid[:40, :40]
    alpha = np.where((x - 19.5) ** 2 + (y - 19.5) ** 2 < 150, 255, 0).astype(np.uint8)
    disc = np.where(alpha[..., None] > 0, np.uint8([200, 120, 40]), np.uint8([0, 255, 0]))
    picture = Picture(disc, alpha, False, Metadata())
    if deep:
        levels = (one.astype(np.uint16) * np.uint16(257) for one in (disc, alpha))
        picture = Picture(*levels, False, Metadata())
    bicubic = Upscaler.from_pretrained(saved_model(tmp_path / "m", tiny_model, trained=False))
    large = bicubic.upscale_picture(picture, scale=4)
    assert large.alpha is not None and large.rgb.dtype == picture.rgb.dtype
    unit = 257 if deep else 1
    weight = large.alpha[..., None] / (255 * unit)
    for background in (0, 255):
        over = large.rgb / unit * weight + background * (1 - weight)
        small = np.where(alpha[..., None] > 0, disc, background).astype(np.uint8)
        expected = cv2.resize(small, (160, 160), interpolation=cv2.INTER_CUBIC)
        edge = (weight > 0) & (weight < 1)  # beyond, the interpolation of `small` overshoots
        assert np.abs(over - expected)[edge[..., 0]].max() <= 2


def test_colors_grow_from_what_is_seen(colors: np.ndarray) -> None:
    alpha = np.zeros(colors.shape[:2], np.uint8)
    assert not colors_everywhere(colors, alpha).any()
    alpha[5, 7] = 1
    grown = colors_everywhere(colors, alpha)
    assert loss(grown, np.broadcast_to(colors[5, 7], colors.shape)) <= 1
    assert colors_everywhere(colors, alpha + 1) is colors


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


def test_what_is_too_long_for_jpeg_is_told(colors: np.ndarray) -> None:
    exif = {ExifTags.IFD.Exif: {ExifTags.Base.MakerNote: bytes(70_000), 33434: 0.02}}
    xmp = made_by(Metadata(), {"model": "x" * 70_000}).xmp
    picture = Picture(colors, None, False, Metadata(exif=exif, xmp=xmp))
    kept, notes = reread(picture, "JPEG")
    assert notes == [
        "the camera maker's part of its EXIF is too long for JPEG",
        "its XMP is too long for JPEG",
    ]
    assert list(kept.metadata.exif[ExifTags.IFD.Exif]) == [33434] and kept.metadata.xmp is None
    assert reread(picture, "PNG")[1] == []
    said = Picture(colors, None, False, Metadata(exif={ExifTags.Base.Artist: "x" * 70_000}))
    assert encode(said, "JPEG")[1] == ["its EXIF is too long for JPEG"]


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
