"""Writes TIFF of 8 and 16 bits: Pillow has 8 bits of colors only, and other libraries no EXIF."""

from __future__ import annotations

import io
import sys
import zlib

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from datagen.errors import FlowmapsrError
from training.inference.metadata import Metadata, xmp_packet

_STRIP_BYTES = 1 << 20
_LARGEST = 4 * 10**9
_SHORT, _LONG, _BYTES, _UNDEFINED = 3, 4, 1, 7
_DEFLATE, _DIFFERENCES, _UNASSOCIATED = 8, 2, 2
_PER_INCH = 2


def tiff_file(pixels: np.ndarray, metadata: Metadata) -> bytes:
    """uint8 or uint16 (H, W[, 1 to 4]): gray or RGB, with or without transparency.

    Raises:
        FlowmapsrError: more than a TIFF can hold, 4 GB.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype == np.uint16 and pixels.shape[2] == 2:  # which few programs read
        pixels = pixels[..., [0, 0, 0, 1]]
    height, width, samples = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    rows = max(1, _STRIP_BYTES // pixels[0].nbytes)
    strips = [_compressed(pixels[top : top + rows]) for top in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    if sum(sizes) > _LARGEST:
        raise FlowmapsrError("larger than 4 GB, which a TIFF cannot be: use a name in .png")
    tags = ImageFileDirectory_v2()
    for tag, value in metadata.exif.items():
        tags[tag] = value
    tags[256], tags[257] = width, height
    tags[258] = (bits,) * samples
    tags[259], tags[262], tags[277], tags[278] = _DEFLATE, 2 if samples > 2 else 1, samples, rows
    tags[317] = _DIFFERENCES
    tags.tagtype[273] = tags.tagtype[279] = _LONG
    tags[273] = tuple(np.cumsum([0, *sizes[:-1]]).tolist())  # from the end of the tags on
    tags[279] = tuple(sizes)
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
    stream = io.BytesIO()
    tags.save(stream)
    stream.write(b"".join(strips))
    return stream.getvalue()


def _compressed(strip: np.ndarray) -> bytes:
    """Each sample as the difference from the pixel to the left."""
    differences = strip.copy()
    differences[:, 1:] -= strip[:, :-1]
    if sys.byteorder == "big":
        differences = differences.byteswap()
    return zlib.compress(differences.tobytes())
