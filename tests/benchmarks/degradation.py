"""Measures the degradation against two reference paths.

Run with `python -m tests.benchmarks.degradation`. All paths use one thread and are timed in CPU
seconds, alternating draw by draw, so that other load on the machine hardly changes the ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import cv2
import numpy as np
import skimage.data
import threadpoolctl
import torch

from datagen.degradation.apply import degrade
from datagen.degradation.draw import draw_degradation, draw_negative
from datagen.degradation.parameters import DegradationParams
from datagen.degradation.settings import (
    Blur,
    DegradationSettings,
    Downscale,
    Jpeg,
    Noise,
    ResizeBack,
)
from pipelines.recipes.load import dataset_recipe
from tests.benchmarks.operation_limits import print_limits
from tests.support.reference_degradation import degrade_numpy, degrade_torch

DegradationPath = Callable[[np.ndarray, DegradationParams], np.ndarray]
Pair = tuple[DegradationParams, DegradationParams]
"""LQ and negative."""


def _recipe_chain(name: str) -> DegradationSettings:
    return dataset_recipe(name, {"sources": ["photos"], "output": "dataset"}).degradation


CHAINS = {
    "FlowMapSR chain (default recipe)": DegradationSettings(),
    "Real-ESRGAN first order + resize back": DegradationSettings(
        scale=(1, 1 / 0.15),
        operations=(
            Blur(probability=1, sigma=(0.2, 3)),
            Downscale(modes=("area", "bilinear", "bicubic")),
            Noise(gaussian_sigma=(1, 30), poisson_scale=(0.05, 3)),
            Jpeg(),
            ResizeBack(modes=("area", "bilinear", "bicubic")),
        ),
    ),
    "Real-ESRGAN second order (recipe realesrgan)": _recipe_chain("realesrgan"),
}
PHOTOS = {512: 24, 1024: 16}
"""Photos for each side."""
TORCH_PHOTOS = {512: 5, 1024: 3}
"""The first of them only, as torch takes seconds for each."""


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with threadpoolctl.threadpool_limits(limits=1):
        for name, settings in CHAINS.items():
            print(f"\n{name}: one photo = LQ + negative\n", flush=True)
            print("| size | images/s per core | over numpy/OpenCV | over torch |")
            print("|---|---|---|---|")
            for side in PHOTOS:
                print(_row(settings, side), flush=True)
        print_limits()


def _row(settings: DegradationSettings, side: int) -> str:
    photo = cv2.resize(skimage.data.astronaut(), (side, side), interpolation=cv2.INTER_CUBIC)
    pairs = _draw_pairs(settings, PHOTOS[side])
    ours, plain = _seconds(photo, pairs, (degrade, degrade_numpy))
    few, torchs = _seconds(photo, pairs[: TORCH_PHOTOS[side]], (degrade, degrade_torch))
    rate = len(pairs) / ours
    return f"| {side}² | {rate:.1f} | {plain / ours:.2f}x | {torchs / few:.1f}x |"


def _draw_pairs(settings: DegradationSettings, count: int) -> list[Pair]:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        lq = draw_degradation(settings, rng)
        pairs.append((lq, draw_negative(settings, rng, lq_scale=lq.scale)))
    return pairs


def _seconds(
    photo: np.ndarray, pairs: Iterable[Pair], paths: tuple[DegradationPath, ...]
) -> list[float]:
    """CPU seconds of each path over all pairs, after a first photo that is not counted."""
    spent = [0.0] * len(paths)
    for number, pair in enumerate([*pairs][:1] + [*pairs]):
        for index, path in enumerate(paths):
            start = time.process_time()
            for drawn in pair:
                path(photo, drawn)
            if number:
                spent[index] += time.process_time() - start
    return spent


if __name__ == "__main__":
    main()
