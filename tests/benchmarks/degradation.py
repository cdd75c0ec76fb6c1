"""Measures the degradation against two reference paths, and a whole build against its own parts.

Run with `python -m tests.benchmarks.degradation`. Everything on one thread and in CPU seconds, so
that neighbours on the machine disturb little; ratios are of the same draws in one run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch

from datagen import storage
from datagen.build import ShardBuilder, plan_dataset
from datagen.codecs import load_codec
from datagen.degradations import DrawnDegradation, degrade, draw_degradation
from datagen.images import decode_photo
from datagen.operations import Blur, DegradationSettings, Downscale, Jpeg, Noise, ResizeBack
from datagen.samples import draw_sample, make_pixels
from datagen.settings import BucketSettings, DatasetRecipe, PixelBudget
from tests.benchmarks.reference_degradation import degrade_numpy, degrade_torch

DegradationPath = Callable[[np.ndarray, DrawnDegradation], np.ndarray]

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
}
PATHS: dict[str, DegradationPath] = {
    "torch": degrade_torch,
    "numpy/OpenCV": degrade_numpy,
    "ours": degrade,
}
SAMPLES = {512: 30, 1024: 10}


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for name, settings in CHAINS.items():
        print(f"\n{name}: one photo = LQ + negative\n")
        print("| size | path | images/s per core | ours is faster |")
        print("|---|---|---|---|")
        for side, count in SAMPLES.items():
            rates = {path: 1 / seconds for path, seconds in _seconds(settings, side, count).items()}
            for path, rate in rates.items():
                print(f"| {side}² | {path} | {rate:.2f} | {rates['ours'] / rate:.2f}x |")
    _build_table()


def _seconds(settings: DegradationSettings, side: int, count: int) -> dict[str, float]:
    """Mean CPU seconds for a photo by each path, over the same draws."""
    photo = cv2.resize(skimage.data.astronaut(), (side, side), interpolation=cv2.INTER_CUBIC)
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        lq = draw_degradation(settings, rng)
        pairs.append((lq, draw_degradation(settings, rng, scale=rng.uniform(1, lq.scale))))
    return {name: _mean_seconds(path, photo, pairs) for name, path in PATHS.items()}


def _mean_seconds(
    path: DegradationPath,
    photo: np.ndarray,
    pairs: Sequence[tuple[DrawnDegradation, DrawnDegradation]],
) -> float:
    for drawn in pairs[0]:
        path(photo, drawn)
    start = time.process_time()
    for lq, neg in pairs:
        path(photo, lq)
        path(photo, neg)
    return (time.process_time() - start) / len(pairs)


def _build_table() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = _write_photos(Path(folder))
        plan = plan_dataset(recipe)
        builder = ShardBuilder(recipe)
        builder(plan.tasks[0])
        cpu, wall = time.process_time(), time.perf_counter()
        records = [builder(task) for task in plan.tasks]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        samples = sum(record.num_samples for record in records)
        megabytes = sum(record.bytes for record in records) / 1e6
        own = _own_work(recipe)
    print("\nWhole build, 512² buckets, dct8, one core, every photo decoded once\n")
    print("| samples/s (CPU) | samples/s (wall) | MB/s (wall) | over decode + degrade + encode |")
    print("|---|---|---|---|")
    print(
        f"| {samples / cpu:.1f} | {samples / wall:.1f} | {megabytes / wall:.0f} | {cpu / own:.2f} |"
    )


def _write_photos(folder: Path) -> DatasetRecipe:
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for index in range(48):
        tinted = skimage.data.astronaut() * rng.uniform(0.6, 1, 3)
        photo = cv2.resize(tinted.astype(np.uint8), (760, 700), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "photos" / f"{index}.jpg"), photo)
    return DatasetRecipe(
        sources=(str(folder / "photos"),),
        output=str(folder / "dataset"),
        samples_per_shard=12,
        buckets=BucketSettings(budgets=(PixelBudget(side=512),)),
    )


def _own_work(recipe: DatasetRecipe) -> float:
    """CPU seconds of decoding, degrading and encoding the same samples, and nothing else."""
    plan, codec = plan_dataset(recipe), load_codec(recipe.codec)
    start = time.process_time()
    for task in plan.tasks:
        for sample in task.samples:
            photo = decode_photo(storage.read_bytes(sample.source.uri), recipe.images)
            made = make_pixels(photo, draw_sample(recipe, sample.source, sample.variant))
            images = np.stack([made.hq.astype(np.float32) / 255, made.lq, made.neg]) * 2 - 1
            codec.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).to(torch.float16)
    return time.process_time() - start


if __name__ == "__main__":
    main()
