"""What a model's degradation says about how it is used."""

from __future__ import annotations

from datagen.degradation.settings import (
    Box,
    DegradationSettings,
    Grey,
    Interpolation,
    Mask,
    Noise,
    ResizeBack,
    paths,
)
from training.settings.evaluation import ColorFix

_ALL_NOISE = 20
"""Least sigma, levels, of noise whose coarse part is seen in flat regions."""


def trained_resize(degradation: DegradationSettings) -> Interpolation:
    """How the LQ came to the size of the HQ in training. Of a mixture bicubic, which keeps most of
    the picture, else the first one."""
    modes = [
        mode
        for path in paths(degradation.operations)
        for operation in path
        if isinstance(operation, ResizeBack)
        for mode in operation.modes
    ]
    return "bicubic" if "bicubic" in modes else modes[0]


def usual_color_fix(degradation: DegradationSettings) -> ColorFix:
    """`off` where the model learned to make colors: its LQ was gray, in parts, or all noise."""
    made = any(
        isinstance(operation, Grey | Mask | Box)
        or (isinstance(operation, Noise) and operation.gaussian_sigma[0] >= _ALL_NOISE)
        for path in paths(degradation.operations)
        for operation in path
    )
    return "off" if made else "wavelet"
