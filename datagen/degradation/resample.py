"""Blurs pixels, resizes them, or does both at once, whichever way is cheapest.

A blur next to a resize can be one pass along each side of the image (why: `resize_matrix.py`).
Where the blur is narrow, or the size hardly changes, two OpenCV calls are faster, so the cost of
both ways is estimated first, with constants measured on OpenCV 5 and OpenBLAS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from datagen.degradation.kernels import Filter
from datagen.degradation.resize_matrix import BandMatrix, reflected, resize_matrix
from datagen.degradation.settings import Interpolation

_PRODUCTS = 250_000
"""Multiplications in one matrix product. OpenBLAS splits larger ones (from 2^18) among threads, and
then the sums, and with them the bytes, would depend on the number of threads."""

Size = tuple[int, int]
"""Width and height, pixels."""

_RESIZE_COST = 2.5
"""Of OpenCV's resize, milliseconds per megapixel, roughly."""

_FLAGS: dict[Interpolation, int] = {
    "nearest": cv2.INTER_NEAREST_EXACT,  # plain INTER_NEAREST shifts the image by half a pixel
    "area": cv2.INTER_AREA,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}


def resized(pixels: np.ndarray, size: Size, mode: Interpolation) -> np.ndarray:
    """float32 (H, W, 3) to exactly `size`."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if mode not in _FLAGS:  # widened kernels, which OpenCV does not have
        return _resampled(pixels, *_matrices(pixels, size, mode))
    return cv2.resize(pixels, size, interpolation=_FLAGS[mode])


def blurred_and_resized(
    pixels: np.ndarray, blur: Filter, size: Size, mode: Interpolation
) -> np.ndarray:
    """Blurs float32 (H, W, 3), then resizes it."""
    vertical, horizontal = _matrices(pixels, size, mode)
    two_calls = pixels.shape[0] * pixels.shape[1] / 1e6 * (blur.cost + _RESIZE_COST)
    taps = vertical.taps + blur.size - 1
    if _cost(pixels, size, terms=blur.terms, taps=taps) >= two_calls:
        return resized(blur.apply(pixels), size, mode)
    return _resampled(pixels, vertical.after_blur(blur.columns), horizontal.after_blur(blur.rows))


def resized_and_blurred(
    pixels: np.ndarray, size: Size, mode: Interpolation, blur: Filter
) -> np.ndarray:
    """Resizes float32 (H, W, 3), then blurs it."""
    vertical, horizontal = _matrices(pixels, size, mode)
    two_calls = size[0] * size[1] / 1e6 * (blur.cost + _RESIZE_COST)
    taps = vertical.taps + math.ceil((blur.size - 1) * pixels.shape[0] / size[1])
    if _cost(pixels, size, terms=blur.terms, taps=taps) >= two_calls:
        return blur.apply(resized(pixels, size, mode))
    return _resampled(pixels, vertical.before_blur(blur.columns), horizontal.before_blur(blur.rows))


def _matrices(pixels: np.ndarray, size: Size, mode: Interpolation) -> tuple[BandMatrix, BandMatrix]:
    vertical = resize_matrix(pixels.shape[0], size[1], mode)
    return vertical, resize_matrix(pixels.shape[1], size[0], mode)


def _cost(pixels: np.ndarray, size: Size, *, terms: int, taps: int) -> float:
    """Milliseconds of `_resampled`, roughly, with this many terms and taps along each side."""
    step = pixels.shape[0] / size[1]
    end = size[0] * size[1] / 1e6
    halfway = end * step
    depth = (_block_rows(step, taps, terms) - 1) * step + taps
    products = 0.3 * depth * terms * (halfway + end)
    return products + 5 * terms * halfway + 8 * end + 0.2 * terms


def _block_rows(step: float, taps: int, stacked: int) -> int:
    """Rows of one dense matrix product, with this many terms stacked.

    More rows share more inputs, but the matrix then has more zeros.
    """
    fewest = 8 if stacked == 1 else 4
    return int(min(max(taps / step, fewest), max(64 // stacked, fewest), 16))


def _resampled(pixels: np.ndarray, vertical: BandMatrix, horizontal: BandMatrix) -> np.ndarray:
    """Applies the matrices to float32 (H, W, 3), summed over their terms; float32 (h, w, 3).

    The side that shrinks goes first and the side that grows last, so that less is left to do.
    """
    if len(vertical.starts) <= len(pixels):
        return cv2.transpose(_two_passes(pixels, vertical, horizontal))
    return _two_passes(cv2.transpose(pixels), horizontal, vertical)


def _two_passes(pixels: np.ndarray, first: BandMatrix, second: BandMatrix) -> np.ndarray:
    """`first` down the columns, `second` along the rows; the result is (columns, rows, 3)."""
    halfway = np.empty((len(first.starts), len(first.weights), pixels[0].size), np.float32)
    _multiply_terms(first, pixels.reshape(len(pixels), -1), halfway)
    terms = halfway.reshape(*halfway.shape[:2], -1, 3)
    turned = [cv2.transpose(terms[:, term]) for term in range(terms.shape[1])]
    result = np.empty((len(second.starts), len(first.starts) * 3), np.float32)
    _sum_terms(second, [part.reshape(len(part), -1) for part in turned], result)
    return result.reshape(len(result), -1, 3)


def _multiply_terms(band: BandMatrix, source: np.ndarray, results: np.ndarray) -> None:
    """results[:, t] = band_t source: (inputs, N) to (outputs, terms, N)."""
    for rows, inputs, matrices in _blocks(band, len(source), stacked=len(band.weights)):
        # All terms in one product: OpenBLAS then reads and packs the inputs once.
        matrix = matrices.transpose(1, 0, 2).reshape(-1, matrices.shape[2])
        _multiply(matrix, source[inputs], results[rows].reshape(len(matrix), -1))


def _sum_terms(band: BandMatrix, sources: Sequence[np.ndarray], result: np.ndarray) -> None:
    """result = sum of band_t sources[t]: (inputs, N) each to (outputs, N)."""
    for rows, inputs, matrices in _blocks(band, len(sources[0]), stacked=1):
        if len(sources) == 1:
            _multiply(matrices[0], sources[0][inputs], result[rows])
            continue
        stacked = np.concatenate([source[inputs] for source in sources])
        _multiply(np.hstack(tuple(matrices)), stacked, result[rows])


def _blocks(
    band: BandMatrix, size: int, *, stacked: int
) -> Iterator[tuple[slice, slice | np.ndarray, np.ndarray]]:
    """Output rows, the inputs they need, and dense matrices (terms, outputs, inputs) between."""
    outputs = len(band.starts)
    step = max((int(band.starts[-1]) - int(band.starts[0])) / outputs, 1e-3)
    count = _block_rows(step, band.taps, stacked)
    for begin in range(0, outputs, count):
        rows = slice(begin, min(begin + count, outputs))
        starts = band.starts[rows]
        low, high = int(starts[0]), int(starts[-1]) + band.taps
        matrices = np.zeros((len(band.weights), len(starts), high - low), np.float32)
        columns = (starts - low)[:, None] + np.arange(band.taps)
        matrices[:, np.arange(len(starts))[:, None], columns] = band.weights[:, rows]
        inside = low >= 0 and high <= size
        yield rows, slice(low, high) if inside else reflected(np.arange(low, high), size), matrices


def _multiply(matrix: np.ndarray, block: np.ndarray, result: np.ndarray) -> None:
    """result = matrix @ block, in pieces too small for OpenBLAS to split among threads."""
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
