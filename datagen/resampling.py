"""Turns pixels into blurred, resized or blurred and resized ones, by the cheapest way.

A blur beside a resize is one pass along each side of the image: what the resize leaves out is never
blurred. Costs were measured on OpenCV 5 and OpenBLAS. Knows no draws and no noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from datagen.bands import Band, resize_band
from datagen.kernels import Filter
from datagen.operations import Interpolation

_PRODUCTS = 250_000
"""Multiplications in one matrix product. OpenBLAS splits larger ones (from 2^18) among threads,
and then the sums, and with them the bytes, would depend on their number."""

_RESIZE_COST = 2.5
"""Milliseconds a megapixel of OpenCV's resize, about."""

_FLAGS: dict[Interpolation, int] = {
    "nearest": cv2.INTER_NEAREST_EXACT,  # plain INTER_NEAREST moves the picture by half a pixel
    "area": cv2.INTER_AREA,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}


def resized(pixels: np.ndarray, size: tuple[int, int], mode: Interpolation) -> np.ndarray:
    """float32 (H, W, 3) to exactly `size`, (width, height)."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if mode == "bicubic_antialiased":
        return _resampled(pixels, *_bands(pixels, size, mode))
    return cv2.resize(pixels, size, interpolation=_FLAGS[mode])


def blurred_and_resized(
    pixels: np.ndarray, blur: Filter, size: tuple[int, int], mode: Interpolation
) -> np.ndarray:
    """Blurs float32 (H, W, 3), then resizes it to `size`, (width, height)."""
    vertical, horizontal = _bands(pixels, size, mode)
    vertical = vertical.after_blur(blur.columns)
    horizontal = horizontal.after_blur(blur.rows)
    apart = _megapixels(pixels) * (blur.cost + _RESIZE_COST)
    if _cost(pixels, vertical, horizontal) < apart:
        return _resampled(pixels, vertical, horizontal)
    return resized(blur.apply(pixels), size, mode)


def resized_and_blurred(
    pixels: np.ndarray, size: tuple[int, int], mode: Interpolation, blur: Filter
) -> np.ndarray:
    """Resizes float32 (H, W, 3) to `size`, (width, height), then blurs it."""
    apart = size[0] * size[1] / 1e6 * (blur.cost + _RESIZE_COST)
    vertical, horizontal = _bands(pixels, size, mode)
    vertical = vertical.before_blur(blur.columns, size=pixels.shape[0])
    horizontal = horizontal.before_blur(blur.rows, size=pixels.shape[1])
    if _cost(pixels, vertical, horizontal) < apart:
        return _resampled(pixels, vertical, horizontal)
    return blur.apply(resized(pixels, size, mode))


def _megapixels(pixels: np.ndarray) -> float:
    return pixels.shape[0] * pixels.shape[1] / 1e6


def _bands(pixels: np.ndarray, size: tuple[int, int], mode: Interpolation) -> tuple[Band, Band]:
    vertical = resize_band(pixels.shape[0], size[1], mode)
    return vertical, resize_band(pixels.shape[1], size[0], mode)


def _cost(pixels: np.ndarray, vertical: Band, horizontal: Band) -> float:
    """Milliseconds of `_resampled`, about."""
    first, second, across = vertical, horizontal, pixels.shape[1]
    if len(vertical.starts) > len(pixels):
        first, second, across = horizontal, vertical, pixels.shape[0]
    terms, outputs = len(first.weights), len(first.starts)
    halfway, end = outputs * across / 1e6, outputs * len(second.starts) / 1e6
    products = 0.18 * (terms * halfway * _depth(first) + terms * end * _depth(second))
    return 3 * terms * halfway + 3 * end + products + 0.02 * terms


def _depth(band: Band) -> int:
    """Inputs of each matrix product: the taps, and those of the neighbours in its block."""
    return round((_block_rows(band) - 1) * _step(band)) + band.taps


def _step(band: Band) -> float:
    return max((int(band.starts[-1]) - int(band.starts[0])) / len(band.starts), 1e-3)


def _block_rows(band: Band) -> int:
    return int(min(max(band.taps / _step(band), 8), 16))


def _resampled(pixels: np.ndarray, vertical: Band, horizontal: Band) -> np.ndarray:
    """Applies the maps to float32 (H, W, 3), summed over their terms; float32 (h, w, 3).

    The side that shrinks goes first and the side that grows last: whichever leaves less to do.
    """
    if len(vertical.starts) <= len(pixels):
        return cv2.transpose(_two_passes(pixels, vertical, horizontal))
    return _two_passes(cv2.transpose(pixels), horizontal, vertical)


def _two_passes(pixels: np.ndarray, first: Band, second: Band) -> np.ndarray:
    """`first` down the columns, `second` along the rows; the result is (columns, rows, 3)."""
    halfway = np.empty((len(first.weights), len(first.starts), pixels[0].size), np.float32)
    _spread(first, pixels.reshape(len(pixels), -1), halfway)
    turned = [cv2.transpose(part.reshape(len(part), -1, 3)) for part in halfway]
    result = np.empty((len(second.starts), len(first.starts) * 3), np.float32)
    _gather(second, [part.reshape(len(part), -1) for part in turned], result)
    return result.reshape(len(result), -1, 3)


def _spread(band: Band, source: np.ndarray, results: np.ndarray) -> None:
    """results[t] = band_t source: (inputs, N) to (terms, outputs, N)."""
    for rows, inputs, matrices in _blocks(band, len(source)):
        block = source[inputs]
        for matrix, result in zip(matrices, results, strict=True):
            _multiply(matrix, block, result[rows])


def _gather(band: Band, sources: Sequence[np.ndarray], result: np.ndarray) -> None:
    """result = sum of band_t sources[t]: (inputs, N) each to (outputs, N)."""
    for rows, inputs, matrices in _blocks(band, len(sources[0])):
        if len(sources) == 1:
            _multiply(matrices[0], sources[0][inputs], result[rows])
            continue
        stacked = np.concatenate([source[inputs] for source in sources])
        _multiply(np.hstack(tuple(matrices)), stacked, result[rows])


def _blocks(band: Band, size: int) -> Iterator[tuple[slice, slice | np.ndarray, np.ndarray]]:
    """Outputs, the inputs they need, and the dense matrices (terms, outputs, inputs) between."""
    outputs, count = len(band.starts), _block_rows(band)
    for begin in range(0, outputs, count):
        rows = slice(begin, min(begin + count, outputs))
        starts = band.starts[rows]
        low, high = int(starts[0]), int(starts[-1]) + band.taps
        matrices = np.zeros((len(band.weights), len(starts), high - low), np.float32)
        places = (starts - low)[:, None] + np.arange(band.taps)
        matrices[:, np.arange(len(starts))[:, None], places] = band.weights[:, rows]
        inside = low >= 0 and high <= size
        yield rows, slice(low, high) if inside else _reflected(np.arange(low, high), size), matrices


def _reflected(positions: np.ndarray, size: int) -> np.ndarray:
    """Positions beyond the ends mirrored at the end pixels: -1 is 1, and size is size - 2."""
    period = max(2 * (size - 1), 1)
    folded = np.abs(positions) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros_like(positions)


def _multiply(matrix: np.ndarray, block: np.ndarray, result: np.ndarray) -> None:
    """result = matrix block, in pieces too small for OpenBLAS to share among threads."""
    columns = max(1, min(_PRODUCTS // matrix.size, block.shape[1]))
    whole = block.shape[1] // columns * columns
    np.matmul(matrix, _pieces(block[:, :whole], columns), out=_pieces(result[:, :whole], columns))
    if whole < block.shape[1]:
        np.matmul(matrix, block[:, whole:], out=result[:, whole:])


def _pieces(matrix: np.ndarray, columns: int) -> np.ndarray:
    """(K, N) seen as (N / columns, K, columns)."""
    rows, stride = matrix.shape[0], matrix.strides
    shape = matrix.shape[1] // columns, rows, columns
    strides = columns * stride[1], stride[0], stride[1]
    return np.lib.stride_tricks.as_strided(matrix, shape, strides)
