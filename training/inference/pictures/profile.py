"""Color profiles: from a file's to sRGB and back. LittleCMS, which Pillow has, converts 8 bits; for
16 bits, which Pillow's interface to it lacks, the formulas of ICC.1 for profiles without tables."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms

_STRIP = 1 << 20
"""Pixels that are converted at once."""


@dataclass(frozen=True)
class WideProfile:
    """A profile that is a curve for each channel and, of colors, a matrix."""

    matrix: np.ndarray | None
    """(3, 3), linear light to the connection space (XYZ, D50); None of gray."""
    curves: np.ndarray
    """float32 (3, 65536): linear light of every level, in [0, 1]."""

    @classmethod
    def of(cls, profile: bytes) -> WideProfile | None:
        """None where it is made of tables, or broken."""
        try:
            count = struct.unpack_from(">I", profile, 128)[0]
            entries = [struct.unpack_from(">4sII", profile, 132 + 12 * n) for n in range(count)]
            tags = {name: profile[start : start + size] for name, start, size in entries}
            if b"A2B0" in tags:
                return None
            if profile[16:20] == b"GRAY":
                return cls(None, np.stack([_curve(tags[b"kTRC"])] * 3))
            curves = np.stack([_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")])
            columns = [struct.unpack_from(">3i", tags[n], 8) for n in (b"rXYZ", b"gXYZ", b"bXYZ")]
            return cls(np.array(columns).T / 65536, curves)
        except (struct.error, KeyError, ValueError, IndexError):
            return None


@cache
def srgb() -> WideProfile:
    profile = WideProfile.of(srgb_profile().tobytes())
    assert profile is not None
    return profile


def converted(levels: np.ndarray, source: WideProfile, target: WideProfile) -> np.ndarray:
    """uint16 (H, W, 3) of one profile -> of another; what the other does not have is clipped."""
    result = np.empty_like(levels)
    matrix = None
    if source.matrix is not None and target.matrix is not None:
        matrix = (np.linalg.inv(target.matrix) @ source.matrix).astype(np.float32)
    rows = max(1, _STRIP // levels.shape[1])
    every = np.arange(65536)
    for top in range(0, len(levels), rows):
        strip = levels[top : top + rows]
        light = np.stack([source.curves[n][strip[..., n]] for n in range(3)], axis=-1)
        if matrix is not None:
            light = light @ matrix.T
        for n in range(3):
            result[top : top + rows, :, n] = np.interp(light[..., n], target.curves[n], every) + 0.5
    return result


def in_profile(rgb: np.ndarray, profile: bytes, *, gray: bool) -> np.ndarray | None:
    """sRGB (H, W, 3) -> the profile's colors (H, W, 3), or its gray levels (H, W); of 8 or 16 bits.
    None where the profile does not say how.

    Args:
        rgb: uint8 or uint16.
        gray: whether the profile is one of gray levels.
    """
    if rgb.dtype == np.uint16:
        target = WideProfile.of(profile)
        result = None if target is None else converted(rgb, srgb(), target)
        return result[..., 0] if gray and result is not None else result
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(known).lower():
            return rgb
        # The usual transform of gray levels is off by 10 in the dark.
        flags = ImageCms.Flags.NOOPTIMIZE if gray else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(
            srgb_profile(), known, "RGB", "L" if gray else "RGB", flags=flags
        )
        return np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), transform))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _curve(tag: bytes) -> np.ndarray:
    """A tag of the type `curv` or `para` (ICC.1:2022, 10.6 and 10.18) at every level of 16 bits."""
    x = np.linspace(0, 1, 65536)
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        table = np.frombuffer(tag, ">u2", count, 12)
        if count == 0:
            y = x
        elif count == 1:
            y = x ** (table[0] / 256)
        else:
            y = np.interp(x, np.linspace(0, 1, count), table / 65535)
    elif tag[:4] == b"para":
        kind = struct.unpack_from(">H", tag, 8)[0]
        values = np.frombuffer(tag, ">i4", (1, 3, 4, 5, 7)[kind], 12) / 65536
        y = _parametric(x, kind, values)
    else:
        raise ValueError(tag[:4])
    return np.clip(y, 0, 1).astype(np.float32)


def _parametric(x: np.ndarray, kind: int, values: np.ndarray) -> np.ndarray:
    """(a x + b)^gamma + e from d on, and c x + f before it: ICC.1:2022, table 68."""
    gamma, a, b, c, d, e, f = np.r_[values, np.zeros(7 - len(values))]
    match kind:
        case 0:
            a, d = 1.0, 0.0
        case 1:
            c, d = 0.0, -b / a
        case 2:
            c, d, e, f = 0.0, -b / a, c, c
    return np.where(x >= d, np.maximum(a * x + b, 0) ** gamma + e, c * x + f)
