"""The metric by which a report judges methods and photos: PSNR, or NIQE of pictures that have no
original."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from training.evaluation.metrics.metric import Better
from training.run_dir.records import PSNR


class MainMetric(NamedTuple):
    """Every evaluation measures it."""

    name: str
    better: Better

    def told(self, value: float) -> str:
        """`24.30 dB`, `niqe 5.31`."""
        return f"{value:.2f} dB" if self.name == PSNR else f"{self.name} {value:.2f}"

    def told_difference(self, value: float) -> str:
        """`+0.30 dB`, `niqe -1.31`."""
        return f"{value:+.2f} dB" if self.name == PSNR else f"{self.name} {value:+.2f}"

    def rank(self, value: float) -> float:
        """Higher for what is better."""
        return value if self.better == "higher" else -value


def main_metric(names: Iterable[str]) -> MainMetric | None:
    """Of the metrics that were measured; None where even NIQE could not be."""
    measured = list(names)
    if PSNR in measured:
        return MainMetric(PSNR, "higher")
    niqe = next((name for name in measured if name.startswith("niqe")), None)
    return None if niqe is None else MainMetric(niqe, "lower")
