"""Lets Pillow read the photos of phones where pillow-heif is installed: the extra `heic`."""

from __future__ import annotations

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
