"""What a metric of evaluation is: a name that says its convention, which way is better, and a
function on pictures.

Pictures are RGB, uint8 (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.settings.evaluation import Border

Better = Literal["higher", "lower"]


class NotMeasurable(ValueError):
    """Why a picture has no value of a metric, such as that it is smaller than a window."""


class Unavailable(Exception):
    """Why a metric cannot be measured here, and how to change that."""


@dataclass(frozen=True)
class PictureMetric:
    """A number for each picture."""

    name: str
    better: Better
    measure: Callable[..., float]
    """Of the result and, where `needs_original`, its original of the same size."""
    needs_original: bool = True
    border: Border = 0
    """Pixels cut from every edge of both; `scale` cuts as many as the scale."""

    def value(
        self, result: np.ndarray, original: np.ndarray | None = None, *, scale: float = 1.0
    ) -> float:
        """
        Raises:
            NotMeasurable: this picture has none.
        """
        pictures = [result]
        if self.needs_original:
            if original is None or original.shape != result.shape:
                raise NotMeasurable("needs an original of the same size")
            pictures.append(original)
        border = round(scale) if self.border == "scale" else self.border
        return self.measure(*(_without_border(one, border) for one in pictures))


def _without_border(picture: np.ndarray, border: int) -> np.ndarray:
    height, width = picture.shape[:2]
    if min(height, width) <= 2 * border:
        raise NotMeasurable(f"{width}x{height} has nothing inside a border of {border} pixels")
    return picture[border : height - border, border : width - border]


@dataclass(frozen=True)
class SetMetric:
    """One number for all results, which are compared as a set with all originals."""

    name: str
    better: Better
    of: str
    """Name of the features; metrics of the same ones share their work."""
    features: Callable[[np.ndarray], np.ndarray]
    """Of a picture, (N, D)."""
    compare: Callable[[np.ndarray, np.ndarray], float]
    """All features of the results and all of the originals, (N, D) and (M, D), to a number.
    Raises `NotMeasurable`: they are too few."""


Metric = PictureMetric | SetMetric


@dataclass(frozen=True)
class Metrics:
    """Those that can be measured here, and a line on each of the others."""

    of_pictures: tuple[PictureMetric, ...]
    of_sets: tuple[SetMetric, ...] = ()
    left_out: tuple[str, ...] = ()
    """`NAME: why, and how to get it`."""

    def better(self) -> dict[str, Better]:
        """Which way is better, by name."""
        named: list[Metric] = [*self.of_pictures, *self.of_sets]
        return {one.name: one.better for one in named}
