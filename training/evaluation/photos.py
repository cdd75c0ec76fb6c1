"""Reads the photos of an evaluation: an original and its small LQ, which is given, or made by the
model's own chain at a fixed scale; or an LQ alone.

The degradation of a photo depends only on seed, photo and scale, so every model and every number
of steps sees the same LQ image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from datagen.degradation.apply import degrade_small
from datagen.degradation.draw import draw_degradation
from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.pairs.check import reasons_of_lq
from datagen.pairs.registration import fault, register
from datagen.photos.decode import ImageRejected, load_image, upright_photo
from datagen.photos.source_file import Rejection, SourceFile, read_photo
from datagen.settings import FilterSettings
from training.data.seeded import seeded
from training.evaluation.metrics.fidelity import WINDOW
from training.evaluation.photo_list import IMAGES, PhotoFile, list_photos
from training.inference.pictures.pixels import enlarged_size
from training.settings.evaluation import EvaluationSettings

MIDDLE = 256
"""Side of the part of an LQ that is looked at to tell whether a pair fits, pixels."""
OnLeftOut = Callable[[Rejection], None]


@dataclass(frozen=True)
class DegradedPhoto:
    """An original and its small LQ image, RGB uint8."""

    name: str
    """Its path below the folder of photos."""
    original: np.ndarray | None
    """Its sides are cut to what the LQ shows; None where there is none."""
    small: np.ndarray
    remarks: tuple[Rejection, ...] = ()
    """What a reader of its numbers should know, such as that it has 16 bits."""
    enlarged: tuple[int, int] | None = None
    """Width and height of a result, where there is no original."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original, and of every result."""
        if self.original is not None:
            height, width = self.original.shape[:2]
            return width, height
        assert self.enlarged is not None
        return self.enlarged


def degraded_photos(
    settings: EvaluationSettings,
    degradation: DegradationSettings,
    scale: float,
    *,
    on_left_out: OnLeftOut | None = None,
) -> Iterator[DegradedPhoto]:
    """Every photo at `scale` in the order of their names; see `read_photos`.

    Raises:
        FlowmapsrError: there are none.
    """
    files = list_photos(settings).at(scale)
    return read_photos(files, settings, degradation, on_left_out=on_left_out)


def read_photos(
    files: Iterable[PhotoFile],
    settings: EvaluationSettings,
    degradation: DegradationSettings,
    *,
    on_left_out: OnLeftOut | None = None,
) -> Iterator[DegradedPhoto]:
    """
    Args:
        on_left_out: is told of each photo that cannot be read or is too small.

    Raises:
        FlowmapsrError: there is such a photo, and no `on_left_out`.
    """
    for file in files:
        try:
            yield _read(file, settings.seed, degradation)
        except (ImageRejected, storage.UnreadableError) as error:
            if on_left_out is None:
                text = f"{file.file.uri}: {error.reason}; take it out of the folder"
                raise FlowmapsrError(text) from error
            on_left_out(Rejection(file.file.uri, error.reason))


def _read(photo: PhotoFile, seed: int, degradation: DegradationSettings) -> DegradedPhoto:
    if not photo.has_original:
        small, remarks = _decoded(photo.file, read_photo(photo.file))
        size = enlarged_size(small, photo.scale)
        return DegradedPhoto(photo.name, None, small, remarks, enlarged=size)
    return _pair(photo, photo.lq) if photo.lq else _degraded(photo, seed, degradation)


def _degraded(photo: PhotoFile, seed: int, degradation: DegradationSettings) -> DegradedPhoto:
    """Its sides are multiples of the scale."""
    data = read_photo(photo.file)
    pixels, remarks = _decoded(photo.file, data)
    height, width = (int(side // photo.scale * photo.scale) for side in pixels.shape[:2])
    original = _large_enough(photo, np.ascontiguousarray(pixels[:height, :width]), pixels)
    rng = seeded(seed, hashlib.sha256(data).hexdigest(), photo.scale)
    drawn = draw_degradation(degradation, rng, scale=photo.scale)
    return DegradedPhoto(photo.name, original, degrade_small(original, drawn), remarks)


def _pair(photo: PhotoFile, lq: SourceFile) -> DegradedPhoto:
    pixels, remarks = _decoded(photo.file, read_photo(photo.file))
    with reasons_of_lq(lq):
        small, _ = _decoded(lq, read_photo(lq))
    original = _large_enough(photo, _shown_by(small, pixels, photo.scale), pixels)
    found = register(_middle(original, photo.scale * MIDDLE), _middle(small, MIDDLE))
    what = fault(found, largest_offset=FilterSettings().max_pair_offset)
    if what is not None:  # a strong degradation leaves as little in common: measured all the same
        remarks = (*remarks, Rejection(photo.file.uri, f"measured, but it may be a {what}"))
    return DegradedPhoto(photo.name, original, small, remarks)


def _middle(picture: np.ndarray, side: float) -> np.ndarray:
    """Enough of a pair to tell, at a tenth of the time that the whole would take."""
    rows, columns = (
        slice(max(0, round((length - side) / 2)), round((length + side) / 2))
        for length in picture.shape[:2]
    )
    return picture[rows, columns]


def _shown_by(small: np.ndarray, original: np.ndarray, scale: float) -> np.ndarray:
    """The upper left part that an LQ was made of, of an original whose sides are no multiples of a
    whole scale, as sets of pairs cut theirs."""
    height, width = (round(side * scale) for side in small.shape[:2])
    over = original.shape[0] - height, original.shape[1] - width
    if scale.is_integer() and all(0 <= rest < scale for rest in over):
        return np.ascontiguousarray(original[:height, :width])
    return original


def _decoded(file: SourceFile, data: bytes) -> tuple[np.ndarray, tuple[Rejection, ...]]:
    """RGB uint8 (H, W, 3), and how it was converted."""
    image = load_image(data, IMAGES)
    how = []
    if image.header.sixteen_bit:
        how.append("has 16 bits a color, measured with 8")
    if image.header.cmyk:
        how.append("is CMYK, measured in sRGB")
    return upright_photo(image, IMAGES), tuple(Rejection(file.uri, one) for one in how)


def _large_enough(photo: PhotoFile, original: np.ndarray, whole: np.ndarray) -> np.ndarray:
    if min(original.shape[:2]) < WINDOW:
        size = f"{whole.shape[1]}x{whole.shape[0]}"
        raise ImageRejected(f"too small to evaluate at scale {photo.scale:g} ({size})")
    return original
