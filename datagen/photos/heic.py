"""Lets Pillow read the photos of phones where pillow-heif is installed: the extra `heic`."""

from __future__ import annotations

import numpy as np

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")

try:
    import pillow_heif
except ModuleNotFoundError:
    HEIC_IS_READ = False
else:
    HEIC_IS_READ = True
    # Photos are decoded side by side, one core each; of a file only its picture is of interest.
    pillow_heif.register_heif_opener(
        decode_threads=1, thumbnails=False, depth_images=False, aux_images=False
    )


def is_heic(start: bytes) -> bool:
    """Whether a file that begins so is HEIC, by whatever name."""
    return start[4:8] == b"ftyp" and start[8:12] in _BRANDS


def heic_levels(data: bytes) -> np.ndarray | None:
    """All bits of a picture of more than 8, upright: uint16 (H, W, 3 or 4) up to 65535; None where
    they are no colors. Raises what pillow-heif does."""
    image = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
    levels, bits = np.asarray(image), image.info["bit_depth"]
    if levels.dtype != np.uint16 or levels.shape[2:] not in ((3,), (4,)):
        return None
    top = (1 << bits) - 1  # it gives them in the upper bits
    return np.rint((levels >> (16 - bits)) * (65535 / top)).astype(np.uint16)
