"""Measures a dataset build against its own degradation and encoding, and two workers against one.

Run as `python -m tests.benchmarks.build`. The codec is an `AutoencoderTiny` of the published size
with random weights, so a sample costs what a real one costs; `dct8` is shown for comparison
(`build_profile.py` says where its time goes). The overhead is in CPU seconds of one process;
workers are real Ray actors and wall seconds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch

from datagen.build.builder import ShardBuilder
from datagen.build.finish import pending_tasks
from datagen.build.in_process import build_in_process
from datagen.build.plan import plan_dataset
from datagen.build.survey import survey
from datagen.dataset.tasks import Plan
from datagen.samples.codecs import load_codec
from datagen.samples.encode import encode
from datagen.samples.prepare import prepare
from datagen.settings import DatasetRecipe
from pipelines.cluster.actor_pool import run_tasks
from pipelines.cluster.ray_session import cluster_nodes, ray_cluster
from pipelines.cluster.workers import plan_workers
from pipelines.recipes.load import dataset_recipe

PHOTOS = 12
VARIANTS = 2
LONG_SHARD = PHOTOS * VARIANTS
"""Samples of a shard where its files are not the cost: a tenth of the default."""
TURNS = 2
RESUMED = 10_000


def main() -> None:
    if sys.argv[1:2] == ["finished"]:
        return _time_finished(sys.argv[2])
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos")
        tiny = {"kind": "autoencoder_tiny", "source": _tiny(folder), "precision": "fp32"}
        print(f"\nWhole build, 256² buckets, {PHOTOS} JPEG photos of 760x700, one thread\n")
        print("| codec | samples/s (CPU) | MB/s | over decode + degrade + encode |")
        print("|---|---|---|---|", flush=True)
        for codec in (tiny, {"kind": "dct8"}):
            _overhead(
                build_recipe(folder, f"one-{codec['kind']}", codec, samples_per_shard=LONG_SHARD)
            )
        _resume(folder)
        _two_workers(folder, tiny)


def _overhead(recipe: DatasetRecipe) -> None:
    """Alternates both; the ratio is that of the sums."""
    plan = plan_dataset(recipe)
    builder = ShardBuilder(recipe)
    builder(plan.tasks[0])
    whole = own = size = samples = 0.0
    for _ in range(TURNS):
        own += _own_seconds(recipe, plan)
        start = time.process_time()
        records = [builder(task) for task in plan.tasks]
        whole += time.process_time() - start
        size += sum(record.bytes for record in records) / 1e6
        samples += sum(record.num_samples for record in records)
    print(
        f"| {recipe.codec.kind} | {samples / whole:.1f} | {size / whole:.0f} | {whole / own:.3f} |",
        flush=True,
    )


def _own_seconds(recipe: DatasetRecipe, plan: Plan) -> float:
    """CPU seconds of reading, decoding, degrading and encoding, with nothing written."""
    codec = load_codec(recipe.codec)
    start = time.process_time()
    for task in plan.tasks:
        for _ in encode(prepare(task, recipe, threads=1), codec, recipe, device="cpu"):
            pass
    return time.process_time() - start


def _two_workers(folder: Path, codec: dict[str, Any]) -> None:
    print("\nWorkers on one Ray cluster, `autoencoder_tiny`, wall seconds of making all tasks\n")
    print("| workers | seconds | samples/s | over one |")
    print("|---|---|---|---|", flush=True)
    with ray_cluster(cpus=2):
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(TURNS):
            for count in (1, 2):
                recipe = build_recipe(folder, f"w{count}-{turn}", codec, workers=count)
                seconds[count].append(_made_in(recipe))
        for count, times in seconds.items():
            best = min(times)
            rate, ratio = PHOTOS * VARIANTS / best, min(seconds[1]) / best
            print(f"| {count} | {best:.1f} | {rate:.1f} | {ratio:.2f} |", flush=True)


def _made_in(recipe: DatasetRecipe) -> float:
    """Wall seconds from the first finished task to the last, when all workers run."""
    plan = plan_dataset(recipe)
    workers = plan_workers(recipe, cluster_nodes())
    builder = ShardBuilder(recipe, device=workers.device, threads=workers.each.cpus)
    done: list[float] = []
    tasks = pending_tasks(plan)
    run_tasks(
        builder, tasks, workers=workers, on_done=lambda task, record: done.append(time.monotonic())
    )
    # The start of Python and torch is excluded: timing starts at each worker's first result.
    measured = done[workers.count - 1 :]
    return (measured[-1] - measured[0]) * len(tasks) / (len(measured) - 1)


def _resume(folder: Path) -> None:
    recipe = build_recipe(
        folder,
        "many",
        {"kind": "dct8"},
        buckets={"budgets": [{"side": 32}], "max_aspect_ratio": 1},
        sources=[_many_photos(folder / "many-photos")],
        crop="cover",
        samples_per_photo=1,
        samples_per_shard=256,
    )
    build_in_process(recipe)
    path = folder / "many.json"
    path.write_text(recipe.model_dump_json())
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.build", "finished", str(path)], check=True
    )
    print(f"with the start of Python: {time.perf_counter() - start:.1f} s", flush=True)


def _time_finished(path: str) -> None:
    recipe = DatasetRecipe.model_validate_json(Path(path).read_bytes())
    start = time.perf_counter()
    complete = survey(recipe).complete
    assert complete is not None and complete.num_samples == RESUMED
    print(
        f"\nResume of a finished build of {RESUMED:,} samples: {time.perf_counter() - start:.2f} s;"
    )


def build_recipe(folder: Path, name: str, codec: dict[str, Any], **changes: Any) -> DatasetRecipe:
    fields: dict[str, Any] = {
        "sources": [str(folder / "photos")],
        "output": str(folder / name),
        "samples_per_photo": VARIANTS,
        "samples_per_shard": 2,
        "buckets": {"budgets": [{"side": 256}]},
        "filters": {"max_megapixels": 1},
        "codec": codec,
    }
    return DatasetRecipe.model_validate({**fields, **changes})


def _tiny(folder: Path) -> str:
    import diffusers

    torch.manual_seed(0)
    path = str(folder / "taesd")
    diffusers.AutoencoderTiny().save_pretrained(path)
    return path


def write_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(PHOTOS):
        tinted = skimage.data.astronaut() * rng.uniform(0.6, 1, 3)
        photo = cv2.resize(tinted.astype(np.uint8), (760, 700), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index}.jpg"), photo)


def build_demo_dataset(folder: Path) -> None:
    """Builds a demo dataset in `folder/dataset`, for benchmarks of training."""
    write_photos(folder / "photos")
    paths = {"sources": [str(folder / "photos")], "output": str(folder / "dataset")}
    build_in_process(dataset_recipe("demo", {**paths, "samples_per_photo": 24}))


def _many_photos(folder: Path) -> str:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(RESUMED):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (32, 32, 3), np.uint8))
    return str(folder)


if __name__ == "__main__":
    main()
