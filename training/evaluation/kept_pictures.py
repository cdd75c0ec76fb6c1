"""Keeps what methods make of a scale's photos, so that its report restores nothing once more."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from training.evaluation.measure import Made, Method
from training.evaluation.photos import DegradedPhoto

MOST_BYTES = 256 * 2**20
"""Of pictures in memory, 85 megapixels; those that are too many are restored again when asked."""


class KeptPictures:
    """The results of one scale, while its photos are at hand."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._left = most_bytes
        self._made: dict[tuple[str, int, str], Made] = {}

    def of(self, method: Method) -> Method:
        """The same method, which remembers."""
        return replace(method, restore=partial(self._restore, method))

    def _restore(self, method: Method, photo: DegradedPhoto) -> Made:
        key = (method.name, method.steps, photo.name)
        if key in self._made:
            return self._made[key]
        made = method.make(photo)
        if made.picture.nbytes <= self._left:
            self._left -= made.picture.nbytes
            self._made[key] = made
        return made
