"""Shows how an upscaling goes on: photos that are done, and the share of those under way."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.terminal.progress import Progress
from training.inference.batch import UpscaleReport
from training.inference.under_way import UnderWay


class PhotoProgress:
    """What `upscale_all` and `upscale_on_cluster` tell, on a bar or in lines."""

    def __init__(self, progress: Progress, *, total: int, done: int) -> None:
        """
        Args:
            total: photos.
            done: those that earlier runs have made.
        """
        self._progress, self._before, self._here = progress, done, total - done
        self._ended, self._share = 0, 0.0

    def under_way(self, at: UnderWay) -> None:
        """Work on photos goes on, or those of a lost worker begin again."""
        self._share = at.done
        self._show(at.speed, f"{at.share:.0%} of {_names(at.photos)}" if at.photos else "")

    def ended(self, photo: str, report: UpscaleReport) -> None:
        """A photo is done."""
        self._ended += 1
        self._show(report.speed, _name(photo))

    def _show(self, speed: float, photos: str) -> None:
        parts = [f"{speed:.2f} megapixels/s" if speed else "", photos]
        self._progress.reach(
            self._before + self._share * self._here,
            whole=self._before + self._ended,
            note="  ".join(filter(None, parts)),
        )


def _names(photos: Sequence[str]) -> str:
    return _name(photos[0]) if len(photos) == 1 else f"{len(photos)} photos"


def _name(photo: str) -> str:
    return photo.rpartition("/")[2]
