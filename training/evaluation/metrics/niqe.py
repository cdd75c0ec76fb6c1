"""NIQE (Mittal et al. 2013): how far the statistics of a picture are from those of good photos,
without an original.

Blocks of 96 pixels, two scales, the model of pristine photos of LIVE, all in float64. BasicSR does
the same in float32, which moves the value by up to 0.011.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import load_file

from training.evaluation.metrics.metric import NotMeasurable

BLOCK = 96
MODEL = Path(__file__).with_name("niqe.safetensors")
"""Mean (36,) and covariance (36, 36) of the features of pristine photos; see its metadata."""
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = np.arange(0.2, 10.001, 0.001)
"""Among which the shape of a distribution is looked up."""


def niqe(y: np.ndarray) -> float:
    """NIQE of a luma (H, W), levels of 8 bits, rounded here; lower is better.

    Raises:
        NotMeasurable: the picture has fewer than two blocks, or fewer that are not flat.
    """
    rows, columns = (side // BLOCK for side in y.shape)
    if rows * columns < 2:
        raise NotMeasurable(
            f"{y.shape[1]}x{y.shape[0]} holds fewer than two of its blocks of {BLOCK} pixels"
        )
    plane = np.round(y[: rows * BLOCK, : columns * BLOCK])
    features = np.concatenate(
        [
            _features(_blocks(_normalized(plane), BLOCK)),
            _features(_blocks(_normalized(_halved(plane)), BLOCK // 2)),
        ],
        axis=1,
    )
    whole = features[np.isfinite(features).all(axis=1)]
    if len(whole) < 2:
        raise NotMeasurable("fewer than two of its blocks are not flat")
    return _distance(whole.mean(axis=0), np.cov(whole, rowvar=False))


def _distance(mean: np.ndarray, covariance: np.ndarray) -> float:
    """Of a Gaussian to that of pristine photos."""
    model = _model()
    difference = model["mean"] - mean
    inverse = np.linalg.pinv((model["covariance"] + covariance) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


@cache
def _model() -> dict[str, np.ndarray]:
    return load_file(MODEL)


def _normalized(plane: np.ndarray) -> np.ndarray:
    """Locally: without the mean, by the deviation plus one (their Eq. 1)."""
    mean = _blurred(plane)
    deviation = np.sqrt(np.abs(_blurred(plane**2) - mean**2))
    normalized: np.ndarray = (plane - mean) / (deviation + 1)
    return normalized


def _blurred(plane: np.ndarray) -> np.ndarray:
    """By MATLAB's fspecial('gaussian', 7, 7 / 6)."""
    return cv2.GaussianBlur(plane, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)


def _halved(plane: np.ndarray) -> np.ndarray:
    """As MATLAB's imresize by 0.5: bicubic with antialiasing, the edge mirrored."""
    distance = np.abs(np.arange(-3.5, 4)) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    taps = np.where(distance <= 1, near, far)
    taps /= taps.sum()
    padded = np.pad(plane, 4, mode="symmetric")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(taps), axis=axis)
        padded = windows[(slice(None),) * axis + (slice(1, -1, 2),)] @ taps
    return padded


def _blocks(plane: np.ndarray, side: int) -> np.ndarray:
    """(H, W) -> (N, side, side)."""
    rows, columns = (length // side for length in plane.shape)
    divided = plane.reshape(rows, side, columns, side).swapaxes(1, 2)
    return divided.reshape(-1, side, side)


def _features(blocks: np.ndarray) -> np.ndarray:
    """(N, side, side) -> (N, 18): shape and spread of the values and of the products of neighbors.
    NaN where a block is flat."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shape, left, right = _asymmetric_gaussian(blocks)
        columns = [_SHAPES[shape], (left + right) / 2]
        for shift in _SHIFTS:
            products = blocks * np.roll(blocks, shift, axis=(1, 2))
            shape, left, right = _asymmetric_gaussian(products)
            mean = (right - left) * _gamma(2)[shape] / _gamma(1)[shape]
            columns += [_SHAPES[shape], mean, left, right]
    found = np.stack(columns, axis=1)
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found


def _asymmetric_gaussian(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the shape among `_SHAPES` and the two scales, (N,) each, by matching moments."""
    left, right = (_root_mean_square(blocks, side) for side in (blocks < 0, blocks > 0))
    ratio = left / right
    moments = np.abs(blocks).mean(axis=(1, 2)) ** 2 / (blocks**2).mean(axis=(1, 2))
    wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    known = _gamma(2) ** 2 / (_gamma(1) * _gamma(3))  # rises with the shape
    shape = np.searchsorted((known[1:] + known[:-1]) / 2, wanted)
    scale = np.sqrt(_gamma(1)[shape] / _gamma(3)[shape])
    return shape, left * scale, right * scale


def _root_mean_square(blocks: np.ndarray, where: np.ndarray) -> np.ndarray:
    squares = np.where(where, blocks, 0) ** 2
    mean: np.ndarray = np.sqrt(squares.sum(axis=(1, 2)) / where.sum(axis=(1, 2)))
    return mean


@cache
def _gamma(factor: int) -> np.ndarray:
    """The gamma function of `factor` / shape for all of `_SHAPES`."""
    return np.array([math.gamma(factor / shape) for shape in _SHAPES])
