"""Shows how an upscaling goes on: photos that are done, and the share of the one under way."""

from __future__ import annotations

from pipelines.terminal.progress import Progress
from training.inference.batch import UnderWay, UpscaleReport


class PhotoProgress:
    """What `upscale_all` tells, on a bar or in lines."""

    def __init__(self, progress: Progress, *, done: int) -> None:
        """
        Args:
            done: photos that earlier runs have made.
        """
        self._progress, self._before = progress, done
        self._ended, self._reached = 0, 0.0

    def under_way(self, at: UnderWay) -> None:
        """Work on a photo goes on."""
        self._show(at.done, at.speed, f"{at.share:.0%} of {_name(at.photo)}")

    def ended(self, photo: str, report: UpscaleReport) -> None:
        """A photo is done."""
        self._ended += 1
        self._show(self._ended, report.speed, _name(photo))

    def _show(self, done: float, speed: float, photo: str) -> None:
        # A photo is told to have ended when the next one is under way already.
        self._reached = max(self._reached, done)
        note = f"{speed:.2f} megapixels/s  {photo}" if speed else photo
        self._progress.reach(self._before + self._reached, note=note)


def _name(photo: str) -> str:
    return photo.rpartition("/")[2]
