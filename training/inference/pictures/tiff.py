"""Writes TIFF of 8 and 16 bits, also row by row: Pillow has 8 bits of colors only, and other
libraries no EXIF."""

from __future__ import annotations

import io
import sys
import zlib
from typing import IO

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from datagen.errors import FlowmapsrError
from training.inference.pictures.metadata import Metadata, xmp_packet
from training.inference.pictures.png import LEVEL

_STRIP_BYTES = 1 << 20
_LARGEST = 4 * 10**9
_BYTES, _LONG, _UNDEFINED, _LONG8 = 1, 4, 7, 16
_DEFLATE, _DIFFERENCES, _UNASSOCIATED = 8, 2, 2
_PER_INCH = 2
_BIG = b"II\x2b\0\x08\0\0\0\0\0\0\0\0\0\0\0"
"""Start of a BigTIFF, with numbers of 64 bits."""


def tiff_file(pixels: np.ndarray, metadata: Metadata) -> bytes:
    """uint8 or uint16 (H, W[, 1 to 4]): gray or RGB, with or without transparency.

    Raises:
        FlowmapsrError: more than a TIFF can hold, 4 GB.
    """
    stream = io.BytesIO()
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    file = TiffRows(stream, pixels.shape[1::-1], channels, pixels.dtype, metadata, big=False)
    file.write(pixels)
    file.end()
    return stream.getvalue()


class TiffRows:
    """A TIFF file that is written from top to bottom."""

    def __init__(
        self,
        stream: IO[bytes],
        size: tuple[int, int],
        channels: int,
        dtype: np.dtype,
        metadata: Metadata,
        *,
        big: bool = True,
    ) -> None:
        """
        Args:
            stream: seekable; the tags at its start are written again at the end.
            size: (width, height).
            channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
            dtype: uint8 or uint16.
            big: BigTIFF, which may have more than 4 GB.
        """
        self._stream, self._big = stream, big
        # Few programs read gray with alpha of 16 bits.
        self._colored = dtype == np.uint16 and channels == 2
        samples = 4 if self._colored else channels
        self._rows = max(1, _STRIP_BYTES // (size[0] * samples * dtype.itemsize))
        self._tags = self._described(size, samples, dtype, metadata)
        self._sizes: list[int] = []
        self._written = 0
        self._waiting: np.ndarray | None = None
        self._strips = -(-size[1] // self._rows)
        self._write_tags([0] * self._strips)

    def write(self, rows: np.ndarray) -> None:
        """The next rows (rows, W[, channels]).

        Raises:
            FlowmapsrError: more than 4 GB, and no BigTIFF.
        """
        rows = rows[..., None] if rows.ndim == 2 else rows
        if self._colored:
            rows = rows[..., [0, 0, 0, 1]]
        if self._waiting is not None:
            rows = np.concatenate([self._waiting, rows])
        whole = len(rows) // self._rows * self._rows
        for top in range(0, whole, self._rows):
            self._put(rows[top : top + self._rows])
        self._waiting = rows[whole:].copy() if whole < len(rows) else None

    def end(self) -> None:
        """Must be called after the last row."""
        if self._waiting is not None:
            self._put(self._waiting)
        self._stream.seek(0)
        self._write_tags(self._sizes)
        self._stream.seek(0, io.SEEK_END)

    def _put(self, strip: np.ndarray) -> None:
        data = _compressed(strip)
        self._sizes.append(len(data))
        self._written += len(data)
        if not self._big and self._written > _LARGEST:
            raise FlowmapsrError("larger than 4 GB, which a TIFF cannot be: use a name in .png")
        self._stream.write(data)

    def _write_tags(self, sizes: list[int]) -> None:
        self._tags[273] = tuple(np.cumsum([0, *sizes[:-1]]).tolist())  # from the tags' end on
        self._tags[279] = tuple(sizes)
        self._tags.save(self._stream)

    def _described(
        self, size: tuple[int, int], samples: int, dtype: np.dtype, metadata: Metadata
    ) -> ImageFileDirectory_v2:
        tags = ImageFileDirectory_v2(_BIG) if self._big else ImageFileDirectory_v2()
        for tag, value in metadata.exif.items():
            tags[tag] = value
        tags[256], tags[257] = size
        tags[258] = (8 * dtype.itemsize,) * samples
        tags[259], tags[262], tags[277] = _DEFLATE, 2 if samples > 2 else 1, samples
        tags[278], tags[317] = self._rows, _DIFFERENCES
        tags.tagtype[273] = tags.tagtype[279] = _LONG8 if self._big else _LONG
        if samples in (2, 4):
            tags[338] = _UNASSOCIATED
        if metadata.dpi is not None:
            tags[282], tags[283] = metadata.dpi
            tags[296] = _PER_INCH
        if metadata.xmp is not None:
            tags.tagtype[700] = _BYTES
            tags[700] = xmp_packet(metadata.xmp)
        if metadata.profile is not None:
            tags.tagtype[34675] = _UNDEFINED
            tags[34675] = metadata.profile
        return tags


def _compressed(strip: np.ndarray) -> bytes:
    """Each sample as the difference from the pixel to the left."""
    differences = strip.copy()
    differences[:, 1:] -= strip[:, :-1]
    if sys.byteorder == "big":
        differences = differences.byteswap()
    compressor = zlib.compressobj(LEVEL, strategy=zlib.Z_FILTERED)
    return compressor.compress(differences.tobytes()) + compressor.flush()
