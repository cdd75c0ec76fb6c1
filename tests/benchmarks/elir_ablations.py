"""The ablations of ELIR (A8 of its specification) at the size of `elir-demo`, as one table.

    python -m tests.benchmarks.elir_ablations PHOTOS WORK [--steps 160] [--only NAME ...]

Each is a recipe of `pipelines/recipes/elir-ablations/`: `elir-demo` with a setting changed, on the
same data, one worker. `elir-demo` itself runs with three seeds, whose spread says which differences
mean something. The last 16 photos are held out; PSNR, SSIM and the ratio of standard deviations of
DCT coefficients (restored over original, mean over coefficients; 1 keeps all detail) are means over
these. WORK keeps dataset and runs for later calls.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datagen.build.in_process import build_in_process
from datagen.samples.codecs import DctCodec
from pipelines.recipes.files import BUNDLED
from pipelines.recipes.load import dataset_recipe, training_recipe
from tests.support.launch import finish, start_torchrun
from training.evaluation.metrics.fidelity import quality
from training.evaluation.photos import degraded_photos
from training.inference.pictures.pixels import bicubic
from training.inference.upscaler import Upscaler
from training.settings.evaluation import EvaluationSettings

HELD_OUT, SCALES, RUNS = 16, (1.0, 2.0), 2
FOLDER = BUNDLED / "elir-ablations"
SEEDS = {"elir-demo": 7, "elir-demo, seed 8": 8, "elir-demo, seed 9": 9}
NAMES = [*SEEDS, *sorted(f"{FOLDER.name}/{path.stem}" for path in FOLDER.glob("*.yaml"))]
MORE_STEPS = {name: (1, 3, 5, 25) for name in ("elir-demo", "elir-ablations/flow-matching")}
"""Steps that models restore in; else those that they were trained for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _prepare(options.photos, options.work)
    print("| ablation | steps | " + " | ".join(f"x{scale:g}" for scale in SCALES) + " |")
    print("|---|---|" + "---|" * len(SCALES))
    print(*rows("bicubic", None, options.work), sep="\n", flush=True)

    def trained(name: str) -> list[str]:
        return list(rows(name, _train(name, options.work, options.steps), options.work))

    with ThreadPoolExecutor(RUNS) as pool:
        for found in pool.map(trained, options.only):
            print(*found, sep="\n", flush=True)


def _prepare(photos: Path, work: Path) -> None:
    if (work / "dataset" / "manifest.json").is_file():
        return
    files = sorted(path for path in photos.iterdir() if path.is_file())
    for name, part in {"train": files[:-HELD_OUT], "held-out": files[-HELD_OUT:]}.items():
        folder = work / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in part:
            shutil.copyfile(path, folder / path.name)
    settings = {
        "sources": [str(work / "photos" / "train")],
        "output": str(work / "dataset"),
        "samples_per_photo": 4,
        "validation_fraction": 0.02,
    }
    build_in_process(dataset_recipe("elir-demo", settings))


def _train(name: str, work: Path, steps: int) -> str:
    """The folder of the finished run."""
    run = work / "".join(letter if letter.isalnum() else "-" for letter in name)
    changes = {
        "manifest": str(work / "dataset"),
        "output": str(run),
        "workers": 1,
        "seed": SEEDS.get(name, 7),
        "stages.elir.steps": steps,
        "stages.elir.validate_every_steps": steps,
        "stages.elir.checkpoint_every_steps": steps,
    }
    recipe = training_recipe("elir-demo" if name in SEEDS else name, changes)
    finish(start_torchrun(recipe, run), seconds=None)
    return str(run)


def rows(name: str, run: str | None, work: Path) -> Iterator[str]:
    upscaler = None if run is None else Upscaler.from_pretrained(run, device="cpu")
    counts: tuple[int, ...] = (0,)
    if upscaler is not None:
        config: Any = upscaler.config
        counts = MORE_STEPS.get(name, (config.objective.segments,))
    for steps in counts:
        cells = [_measured(upscaler, steps, scale, work) for scale in SCALES]
        yield f"| {name} | {steps} | {' | '.join(cells)} |"


def _measured(upscaler: Upscaler | None, steps: int, scale: float, work: Path) -> str:
    settings = EvaluationSettings(photos=str(work / "photos" / "held-out"))
    degradation = dataset_recipe("elir-demo", {"sources": ["/a"], "output": "/b"}).degradation
    found = []
    for photo in degraded_photos(settings, degradation, scale):
        height, width = photo.original.shape[:2]
        image = bicubic(photo.small, (width, height))
        if upscaler is not None:
            image = upscaler.restore(upscaler.enlarge(photo.small, (width, height)), steps=steps)
        deviations = _deviations(image) / _deviations(photo.original)
        found.append([*quality(photo.original, image), float(deviations.mean())])
    psnr, ssim, ratio = np.mean(found, axis=0)
    return f"{psnr:.2f} dB, {ssim:.3f}, {ratio:.2f}"


def _deviations(image: np.ndarray) -> torch.Tensor:
    """Standard deviation of each DCT coefficient over a picture."""
    height, width = (side // 8 * 8 for side in image.shape[:2])
    pixels = torch.from_numpy(image[:height, :width].copy()).permute(2, 0, 1)[None]
    latents = DctCodec(8).encode(pixels.float() / 127.5 - 1)
    return latents.std(dim=(0, 2, 3)).clamp(min=1e-3)


if __name__ == "__main__":
    main()
