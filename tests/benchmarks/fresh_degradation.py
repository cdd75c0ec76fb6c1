"""Measures fresh degradation in the loader against the bare kernel.

Run with `python -m tests.benchmarks.fresh_degradation`. All take one thread and are timed in CPU
seconds, in turns: the loader reads shards, decodes the HQ and degrades it by new draws; the same
loader reads the HQ alone; the kernel degrades pixels in memory, by parameters drawn before from
another seed: with equal ones a resize would find its matrices made.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import threadpoolctl
import torch
from PIL import Image

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import open_dataset
from datagen.degradation.apply import degrade
from datagen.degradation.draw import draw_degradation
from pipelines.recipes.load import dataset_recipe
from training.data.bucket_mix import bucket_sizes, proportional_shares
from training.data.fresh_degradation import FreshDegradation
from training.data.loader import BatchReader, Source
from training.data.planned import Position
from training.data.schedule import Schedule
from training.data.seeded import seeded
from training.data.shard_store import ShardStore
from training.settings.batch_fields import BatchFields
from training.settings.stage import BatchSize

SIDE, SAMPLES, BATCH, TURNS = 512, 32, 4, 20
FIELDS = BatchFields(latents=(), hq_pixels=True, lq_pixels="fresh")
HQ_ALONE = BatchFields(latents=(), hq_pixels=True)


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print("| recipe | HQ | samples/s per core | HQ alone | degradation over the bare kernel |")
    print("|---|---|---|---|---|", flush=True)
    with threadpoolctl.threadpool_limits(limits=1), tempfile.TemporaryDirectory() as folder:
        photos = _photos(Path(folder, "photos"))
        for recipe in ("flowmapsr-paper", "realesrgan"):
            for hq in ("jpeg", "png"):
                print(_row(recipe, hq, photos, Path(folder, f"{recipe}-{hq}")), flush=True)


def _photos(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(SAMPLES):
        photo = (skimage.data.astronaut(), skimage.data.coffee()[:400, :400])[number % 2]
        photo = cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        noisy = photo + rng.normal(0, 3, photo.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def _row(name: str, hq: str, photos: Path, output: Path) -> str:
    recipe = dataset_recipe(
        name,
        {
            "sources": [str(photos)],
            "output": str(output),
            "buckets": {"budgets": [{"side": SIDE}], "max_aspect_ratio": 1},
            "samples_per_photo": 1,
            "validation_fraction": 0,
            "latents": [],
            "hq_pixels": hq,
        },
    )
    build_in_process(recipe)
    manifest, root = open_dataset(str(output))
    shares = proportional_shares(bucket_sizes(manifest, "train"), BatchSize(BATCH, BATCH))
    schedule = Schedule([manifest], shares, seed=0, shuffle_window_shards=8, split="train")
    fresh = FreshDegradation(recipe.degradation, seed=0)
    store = ShardStore(root)
    both = BatchReader([Source(store, fresh=fresh)], schedule, manifest.codec, FIELDS)
    alone = BatchReader([Source(store)], schedule, manifest.codec, HQ_ALONE)
    spent = np.zeros(3)
    position, count = Position(), 0
    for turn in range(TURNS * SAMPLES // BATCH):
        step = schedule.step_at(position)
        (planned,) = step.micro_batches_of(0, 1)
        start = time.process_time()
        batch = both.read(planned)
        read = time.process_time()
        alone.read(planned)
        read_alone = time.process_time()
        assert batch.hq_pixels is not None and batch.lq_pixels is not None
        images = [image.permute(1, 2, 0).contiguous().numpy() for image in batch.hq_pixels]
        epochs = [schedule.epoch(*sample) for sample in planned.samples]
        draws = [
            draw_degradation(recipe.degradation, seeded(1, "degradation", epoch, key))
            for key, epoch in zip(batch.keys, epochs, strict=True)
        ]
        kernel_start = time.process_time()
        for image, drawn in zip(images, draws, strict=True):
            degrade(image, drawn)
        kernel = time.process_time() - kernel_start
        position = step.position
        if turn:  # the first one checks shards and warms up
            spent += read - start, read_alone - read, kernel
            count += len(batch.keys)
    whole, hq_alone, kernel = spent
    rates = f"{count / whole:.1f} | {count / hq_alone:.1f}"
    return f"| {name} | {hq} | {rates} | {(whole - hq_alone) / kernel:.2f} |"


if __name__ == "__main__":
    main()
