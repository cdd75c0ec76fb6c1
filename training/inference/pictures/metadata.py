"""What a picture's file says beside the pixels: color profile, EXIF, XMP and resolution. Kept, but
for what is no longer true of the enlarged picture; how that was made is added to the XMP."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from PIL import ExifTags, Image

from datagen.photos.headers import DECODER_ERRORS

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMLNS = "http://www.w3.org/2000/xmlns/"
MADE = "urn:flowmapsr:upscaled:1"
"""XML namespace of how a picture was made."""
_TIFF, _EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
_UNTRUE = {
    (_TIFF, "Orientation"), (_TIFF, "ImageWidth"), (_TIFF, "ImageLength"),
    (_EXIF, "PixelXDimension"), (_EXIF, "PixelYDimension"),
    ("http://ns.adobe.com/xap/1.0/", "Thumbnails"),
}  # fmt: skip
"""XMP of the small picture: its size, how it lies in its file, its thumbnail."""
_OTHERS = {
    "http://ns.google.com/photos/1.0/container/", "http://ns.adobe.com/hdr-gain-map/1.0/", MADE,
}  # fmt: skip
"""Namespaces that speak of other pictures in the same file, and of how this one was made before."""
_STORAGE = frozenset(
    {*range(254, 260), *range(262, 267), 273, 274, *range(277, 282), 284, *range(288, 294), 301,
     *range(317, 324), 325, 330, *range(332, 348), *range(512, 533), 700, 33723, 34377, 34675}
)  # fmt: skip
"""EXIF tags of how pixels are stored, and of what is kept elsewhere: of a TIFF they are among the
tags that describe the photo."""
_SIDES = frozenset({0xA002, 0xA003})
_X, _Y, _UNIT, _PER_INCH = 282, 283, 296, 2
"""Tags of the resolution, and the unit that dpi have."""


@dataclass(frozen=True)
class Metadata:
    """Of one picture; None or empty where its file says nothing."""

    profile: bytes | None = None
    """Embedded ICC profile."""
    exif: Mapping[int, Any] = field(default_factory=dict)
    """Tags of the first directory; those of sub-directories are mappings."""
    xmp: str | None = None
    """The element `rdf:RDF`."""
    dpi: tuple[float, float] | None = None


def read_metadata(image: Image.Image, *, cmyk: bool) -> tuple[Metadata, list[str]]:
    """What the file of a loaded image says, and what of it had to be left out."""
    notes = []
    profile = image.info.get("icc_profile") or None
    if cmyk:
        notes.append("its CMYK colors become sRGB")
        profile = None
    dpi = _resolution(image.info.get("dpi"))
    exif: dict[int, Any] = {}
    try:
        found = image.getexif()
        if dpi is None and found.get(_UNIT) == _PER_INCH:
            dpi = _resolution((found.get(_X), found.get(_Y)))
        exif = _exif(found, dpi)
    except (*DECODER_ERRORS, ZeroDivisionError):
        notes.append("its EXIF data is broken and left out")
    try:
        xmp = _rdf(image.info.get("xmp") or image.info.get("XML:com.adobe.xmp"))
    except (ExpatError, ValueError):
        xmp = None
        notes.append("its XMP data is broken and left out")
    return Metadata(profile, exif, xmp, dpi), notes


def without_gps(metadata: Metadata) -> Metadata:
    """Without where the photo was taken."""
    exif = {tag: value for tag, value in metadata.exif.items() if tag != ExifTags.IFD.GPSInfo}
    xmp = metadata.xmp
    if xmp is not None:
        root = _root(xmp.encode())
        _remove(root, lambda space, name: space == _EXIF and name.startswith("GPS"))
        xmp = root.toxml()
    return replace(metadata, exif=exif, xmp=xmp)


def made_by(metadata: Metadata, made: Mapping[str, str]) -> Metadata:
    """With how the picture was made in its XMP, by names such as `model`."""
    root = _root((metadata.xmp or f'<rdf:RDF xmlns:rdf="{_RDF}"/>').encode())
    document = root.ownerDocument
    assert document is not None
    description = document.createElementNS(_RDF, "rdf:Description")
    description.setAttributeNS(_XMLNS, "xmlns:rdf", _RDF)
    description.setAttributeNS(_XMLNS, "xmlns:flowmapsr", MADE)
    description.setAttributeNS(_RDF, "rdf:about", "")
    for name, value in made.items():
        description.setAttributeNS(MADE, f"flowmapsr:{name}", value)
    root.appendChild(description)
    return replace(metadata, xmp=root.toxml())


def exif_of(metadata: Metadata) -> Image.Exif:
    """As Pillow writes it."""
    exif = Image.Exif()
    exif.update(metadata.exif)
    return exif


def xmp_packet(rdf: str) -> bytes:
    """All of what a file holds."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{rdf}</x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _exif(found: Image.Exif, dpi: tuple[float, float] | None) -> dict[int, Any]:
    kept = {tag: value for tag, value in found.items() if tag not in _STORAGE}
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        part = {name: value for name, value in found.get_ifd(tag).items() if name not in _SIDES}
        if ExifTags.IFD.Interop in part:
            part[ExifTags.IFD.Interop] = found.get_ifd(ExifTags.IFD.Interop)
        kept.pop(tag, None)
        if part:
            kept[tag] = part
    if dpi is not None:  # of formats that hold it nowhere else
        kept |= {_X: dpi[0], _Y: dpi[1], _UNIT: _PER_INCH}
    exif_of(Metadata(exif=kept)).tobytes()  # broken values raise here, before any work
    return kept


def _resolution(dpi: tuple[Any, Any] | None) -> tuple[float, float] | None:
    if dpi is None or None in dpi:
        return None
    x, y = map(float, dpi)
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def _rdf(packet: bytes | str | None) -> str | None:
    if not packet:
        return None
    root = _root((packet.encode() if isinstance(packet, str) else packet).strip(b"\0 \r\n\t"))
    _remove(root, lambda space, name: (space, name) in _UNTRUE or space in _OTHERS)
    return root.toxml()


def _root(packet: bytes) -> minidom.Element:
    """The element rdf:RDF of a packet. Raises ValueError where there is none."""
    if b"<!DOCTYPE" in packet:
        raise ValueError("XMP has no document type")
    found = minidom.parseString(packet).getElementsByTagNameNS(_RDF, "RDF")
    if not found:
        raise ValueError("no rdf:RDF")
    root = found[0]
    parent = root.parentNode
    while isinstance(parent, minidom.Element):  # names of spaces are declared there too
        for name, value in parent.attributes.items():
            if name.startswith("xmlns") and not root.hasAttribute(name):
                root.setAttributeNS(_XMLNS, name, value)
        parent = parent.parentNode
    return root


def _remove(element: minidom.Element, unwanted: Callable[[str | None, str], bool]) -> None:
    """Removes attributes and elements by their namespace and name, and descriptions of nothing."""
    for attribute in list(element.attributes.values()):
        if unwanted(attribute.namespaceURI, attribute.localName):
            element.removeAttributeNode(attribute)
    for child in list(element.childNodes):
        if not isinstance(child, minidom.Element):
            continue
        _remove(child, unwanted)
        if unwanted(child.namespaceURI, child.localName) or _says_nothing(child):
            element.removeChild(child)


def _says_nothing(element: minidom.Element) -> bool:
    if (element.namespaceURI, element.localName) != (_RDF, "Description"):
        return False
    attributes = {one.namespaceURI for one in element.attributes.values()}
    inside = any(isinstance(child, minidom.Element) for child in element.childNodes)
    return not inside and attributes <= {_RDF, _XMLNS}
