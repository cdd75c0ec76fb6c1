"""Image members of a sample: JPEG and PNG of its HQ and LQ, there and back."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from datagen.dataset.records import DrawnSample
from datagen.degradation.apply import enlarge
from datagen.samples.buckets import Bucket
from datagen.settings import DatasetRecipe, LqPixels

# The smallest of PNG's encoders for the time; WebP would be a quarter smaller, but other tools
# read these members (tests/benchmarks/RESULTS.md).
_PNG = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH),
)


def hq_image(hq: np.ndarray, recipe: DatasetRecipe) -> bytes | None:
    """What is stored of HQ pixels, uint8 (H, W, 3)."""
    match recipe.hq_pixels:
        case "jpeg":
            return _encoded(hq, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, recipe.hq_jpeg_quality))
        case "png":
            return png(hq)
        case "none":
            return None


def png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3), lossless; equal pixels give equal bytes."""
    return _encoded(pixels, ".png", _PNG)


def _encoded(pixels: np.ndarray, suffix: str, options: tuple[int, ...]) -> bytes:
    _, data = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return data.tobytes()


def decode_pixels(data: bytes) -> np.ndarray | None:
    """uint8 (H, W, 3); None if it is no image."""
    if data.startswith(b"\xff\xd8"):  # same pixels as OpenCV's in two thirds of the time
        try:
            return simplejpeg.decode_jpeg(data)
        except ValueError:
            return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def lq_at_hq_size(
    stored: np.ndarray, drawn: DrawnSample, kind: LqPixels, *, out: np.ndarray | None = None
) -> np.ndarray:
    """float32 (H, W, 3) in [0, 1], of the stored LQ pixels; `kind` is the recipe's `lq_pixels`.

    Of the small LQ it is what the builder made of the photo, to the last bit.
    """
    if kind == "full":
        return np.divide(stored, np.float32(255), out=out, dtype=np.float32)
    assert drawn.lq is not None, "no small LQ is stored of pairs"
    bucket = Bucket.from_name(drawn.bucket)
    return enlarge(stored, drawn.lq, size=(bucket.width, bucket.height), out=out)
