"""Writes PNG of 8 and 16 bits row by row (PNG specification, third edition): pictures that do not
fit into memory, and what libraries do not write of others."""

from __future__ import annotations

import struct
import zlib
from typing import IO

import numpy as np

from training.inference.pictures.metadata import Metadata, exif_of, xmp_packet

_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}
"""The color type by the number of channels."""
LEVEL = 4
"""Of zlib, for filtered pixels: a third of the time of its usual 6, and 1 to 2 % more bytes."""
_PIECE = 1 << 20
"""Bytes that are compressed at once."""


class PngRows:
    """A PNG file that is written from top to bottom."""

    def __init__(
        self,
        stream: IO[bytes],
        size: tuple[int, int],
        channels: int,
        dtype: np.dtype,
        metadata: Metadata,
    ) -> None:
        """
        Args:
            size: (width, height).
            channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
            dtype: uint8 or uint16.
        """
        self._stream, self._above = stream, np.zeros((1, 0), np.uint8)
        self._pixel = channels * dtype.itemsize
        self._compressor = zlib.compressobj(LEVEL, strategy=zlib.Z_FILTERED)
        header = struct.pack(">IIBBBBB", *size, 8 * dtype.itemsize, _COLORS[channels], 0, 0, 0)
        stream.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + metadata_chunks(metadata))

    def write(self, rows: np.ndarray) -> None:
        """The next rows (rows, W[, channels])."""
        big = rows.astype(rows.dtype.newbyteorder(">"), copy=False)
        data = np.ascontiguousarray(big).view(np.uint8).reshape(len(rows), -1)
        if not self._above.size:
            self._above = np.zeros((1, data.shape[1]), np.uint8)
        count = max(1, _PIECE // data.shape[1])
        for top in range(0, len(data), count):
            part = data[top : top + count]
            filtered = _filtered(part, np.concatenate([self._above, part[:-1]]), self._pixel)
            self._put(self._compressor.compress(filtered.tobytes()))
            self._above = part[-1:]

    def end(self) -> None:
        """Must be called after the last row."""
        self._put(self._compressor.flush())
        self._stream.write(chunk(b"IEND", b""))

    def _put(self, data: bytes) -> None:
        if data:
            self._stream.write(chunk(b"IDAT", data))


def metadata_chunks(metadata: Metadata) -> bytes:
    """What stands between the header and the pixels."""
    chunks = []
    if metadata.profile is not None:
        chunks.append(chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.profile)))
    if metadata.dpi is not None:
        per_meter = [round(dpi / 0.0254) for dpi in metadata.dpi]
        chunks.append(chunk(b"pHYs", struct.pack(">IIB", *per_meter, 1)))
    if metadata.exif:
        chunks.append(chunk(b"eXIf", exif_of(metadata).tobytes().removeprefix(b"Exif\0\0")))
    if metadata.xmp is not None:
        text = b"XML:com.adobe.xmp" + bytes(5) + xmp_packet(metadata.xmp)
        chunks.append(chunk(b"iTXt", text))
    return b"".join(chunks)


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def _filtered(rows: np.ndarray, above: np.ndarray, pixel: int) -> np.ndarray:
    """Bytes (rows, n), and those of the row above each, to the filtered (rows, 1 + n): of the
    filters 1 to 4 the one that leaves the least, as the specification advises."""
    left, corner = (np.pad(one[:, :-pixel], ((0, 0), (pixel, 0))) for one in (rows, above))
    half = ((left.astype(np.uint16) + above) >> 1).astype(np.uint8)
    tried = [rows - guess for guess in (left, above, half, _paeth(left, above, corner))]
    sums = np.stack([np.abs(one.view(np.int8).astype(np.int16)).sum(axis=1) for one in tried])
    best = sums.argmin(axis=0)
    result = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
    result[:, 0] = best + 1
    for number, one in enumerate(tried):
        result[best == number, 1:] = one[best == number]
    return result


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Of the three the one nearest to left + above - corner; section 9.4."""
    a, b, c = (one.astype(np.int16) for one in (left, above, corner))
    to_left, to_above = np.abs(b - c), np.abs(a - c)
    to_corner = np.abs(a + b - 2 * c)
    nearest = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
