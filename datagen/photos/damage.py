"""Finds faults inside of a picture that its decoder passes over.

libjpeg tells them by warnings and libtiff by messages; Pillow hides both, and shows gray or wrong
colors.
"""

from __future__ import annotations

import ctypes
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import simplejpeg
from PIL import Image

_JPEG, _DEFLATE = 7, (8, 32946)
_COMPRESSION, _JPEG_TABLES, _SAMPLES, _PLANES = 259, 347, 277, 284
_PARTS = ((273, 279), (324, 325))  # where strips and tiles begin, and how long they are
_PIECE = 1 << 12  # a thousandfold at most
_thread = threading.local()


@ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
def _on_tiff_error(module: bytes, template: bytes, values: int) -> None:
    """Called by libtiff in the thread that decodes; else it would write to the terminal."""
    getattr(_thread, "messages", []).append(f"{module.decode()}: {template.decode()}")


# The libtiff of Pillow, wherever it is: a symbol is looked for in the libraries of a library too.
ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(_on_tiff_error)


class Damaged(Exception):
    """Parts of a picture are not what was written."""


@contextmanager
def tiff_messages() -> Iterator[list[str]]:
    """The errors that libtiff tells of in this thread, as they come."""
    _thread.messages = []
    yield _thread.messages


def check_jpeg(data: bytes, components: int) -> None:
    """Raises Damaged for a JPEG file that makes libjpeg warn.

    It is decoded at an eighth of its size, which takes half the time of decoding it whole.
    """
    colors = "CMYK" if components == 4 else "GRAY"
    smallest = {"min_height": 1, "min_width": 1, "min_factor": 8}
    try:
        simplejpeg.decode_jpeg(data, colors, strict=True, **smallest)
    except ValueError as error:
        raise Damaged from error


def check_tiff(data: bytes, tags: Mapping[int, Any]) -> None:
    """Raises Damaged for a TIFF file with a strip or tile that libtiff shows in spite of its fault.

    Source: TIFF Technical Note 2 (1995), "The JPEGTables field", which all parts share.
    """
    compression = tags.get(_COMPRESSION, 1)
    components = 1 if tags.get(_PLANES, 1) == 2 else tags.get(_SAMPLES, 1)
    is_jpeg = compression == _JPEG and components in (1, 3, 4)
    if not (is_jpeg or compression in _DEFLATE):
        return
    tables = tags.get(_JPEG_TABLES, b"\xff\xd8\xff\xd9")
    for starts, lengths in _PARTS:
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False):
            if is_jpeg and length:
                check_jpeg(tables[:-2] + data[start + 2 : start + length], components)
            elif length:
                _check_deflate(memoryview(data)[start : start + length])


def _check_deflate(part: memoryview) -> None:
    """libtiff stops when it has all pixels: before the checksum, where a fault has added some."""
    stream = zlib.decompressobj()
    try:
        for start in range(0, len(part), _PIECE):
            stream.decompress(part[start : start + _PIECE])
    except zlib.error as error:
        raise Damaged from error
    if not stream.eof:
        raise Damaged
