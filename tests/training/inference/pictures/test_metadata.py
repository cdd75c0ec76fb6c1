"""EXIF, XMP and resolution: kept but for what changed; what is broken or too long is told."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from tests.support.picture_files import (
    saved,
)
from tests.training.inference.pictures.rereading import FORMATS, loss, reread
from training.inference.pictures.decode import Picture, read_picture
from training.inference.pictures.encode import encode
from training.inference.pictures.metadata import Metadata, made_by, without_gps

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


def test_the_photos_of_phones_keep_their_exif(colors: np.ndarray) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Phone"
    picture = read_picture(saved(Image.fromarray(colors), "HEIF", exif=exif.tobytes(), quality=90))
    assert picture.metadata.exif[ExifTags.Base.Make] == "Phone" and loss(picture.rgb, colors) < 20


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
