"""Generated image files of every kind: profiles, orientations, animations, bombs."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def turned(pixels: np.ndarray, orientation: int, format: str = "JPEG", **options: Any) -> bytes:
    """A file with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(pixels), format, exif=exif, **options)


def animation(pixels: np.ndarray, format: str, frames: int = 3) -> bytes:
    """A GIF, WebP, APNG or multi-page TIFF, whose first frame is `pixels`."""
    others = [Image.fromarray(np.roll(pixels, 5 * n, axis=0)) for n in range(1, frames)]
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    return saved(Image.fromarray(pixels), format, save_all=True, append_images=others, **options)


def sixteen_bit_png(levels: np.ndarray) -> bytes:
    """uint16 (H, W) or RGB (H, W, 3); Pillow cannot write the latter."""
    return cv2.imencode(".png", levels[..., ::-1] if levels.ndim == 3 else levels)[1].tobytes()


def sixteen_bit_tiff(levels: np.ndarray) -> bytes:
    return cv2.imencode(".tiff", levels[..., ::-1] if levels.ndim == 3 else levels)[1].tobytes()


def png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png_bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header declares side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def with_segments(jpeg: bytes, size: int) -> bytes:
    """The JPEG with `size` bytes of application data before its frame header."""
    segment = b"\xff\xeb" + struct.pack(">H", 60_002) + bytes(60_000)
    return jpeg[:2] + segment * -(-size // 60_000) + jpeg[2:]


def linear_gray_profile() -> bytes:
    """An ICC profile of gray levels proportional to light."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0100) + bytes(2)  # gamma 1.0 as u8Fixed8
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": curve})


def cmyk_profile(lightness_of_cyan: int) -> bytes:
    """An ICC profile whose inks are all neutral: cyan has this L* (0..255 for 0..100), others 0."""
    identity = struct.pack(">9i", *(0x10000 if n in (0, 4, 8) else 0 for n in range(9)))
    corners = bytearray()
    for corner in range(16):  # the first ink varies slowest
        lightness = {0: 255, 8: lightness_of_cyan}.get(corner, 0)
        corners += bytes([lightness, 128, 128])
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity
    table += bytes(range(256)) * 4 + bytes(corners) + bytes(range(256)) * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table})


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """ICC.1:2001-04: a header of 128 bytes, a table of tags, their data."""
    text = b"made by a test\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D),
        **tags,
    }
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI", start + len(body), b"", 0x02400000)
    header += (b"prtr" if space == b"CMYK" else b"mntr") + space + connection + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + table + body
