"""Trains the demo's four stages, larger, on a folder of photos and measures each stage.

Run as `python -m tests.benchmarks.four_stages PHOTOS HELD_OUT OUTPUT`; run it again to resume.
Prints held-out PSNR, SSIM and sharpness at 1, 2 and 4 steps for every stage, and draws a picture
for each in OUTPUT. Sharpness is the mean gradient of the luma over that of the original: 1 is as
detailed (or as noisy), less is blurred.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from pipelines.flows.dataset import build_dataset
from pipelines.flows.training import train
from pipelines.recipes.load import dataset_recipe, training_recipe
from training.evaluation.comparison import comparison
from training.evaluation.metrics.fidelity import quality
from training.evaluation.photos import DegradedPhoto, degraded_photos
from training.inference.pictures.pixels import bicubic
from training.inference.upscaler import Upscaler
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe

SCALES = (4.0, 8.0)
STEPS = (1, 2, 4)
SHOWN = 4
"""Photos in each picture."""
NETWORK = {"block_channels": [96, 144], "layers_per_block": 1}
BATCH = {"global_batch": 16, "micro_batch": 8, "checkpoint_every_steps": 100}
STAGES = {
    "warmup": {"steps": 1200},
    "distill": {"steps": 500},
    "guidance": {"steps": 300},
    "adversarial": {"steps": 400},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("photos", "held_out", "output"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    base: Path = given.output.absolute()
    recipe = _trained(given.photos.absolute(), base)
    settings = EvaluationSettings(photos=str(given.held_out), scales=SCALES, steps=STEPS)
    print("| stage | scale | steps | PSNR dB | SSIM | sharpness |")
    print("|---|---|---|---|---|---|")
    for stage in recipe.stages:
        upscaler = Upscaler.from_pretrained(str(base / "run" / "stages" / stage.name / "model"))
        for scale in SCALES:
            photos = list(degraded_photos(settings, upscaler.config.degradation, scale))
            if stage is recipe.stages[0]:
                _print("(bicubic)", scale, None, photos)
            for steps in STEPS:
                _print(stage.name, scale, steps, photos, upscaler)
            if scale == SCALES[0]:
                picture = comparison(upscaler, photos[:SHOWN], STEPS)
                picture.save(base / f"{stage.name}.png")


def _trained(photos: Path, base: Path) -> TrainingRecipe:
    dataset = dataset_recipe(
        "demo", {"sources": [str(photos)], "output": str(base / "dataset"), "samples_per_photo": 12}
    )
    build_dataset(dataset)
    changes = {
        f"stages.{stage}.{name}": value
        for stage, own in STAGES.items()
        for name, value in {**BATCH, **own}.items()
    }
    paths = {"manifest": str(base / "dataset"), "output": str(base / "run")}
    network = {f"model.{name}": value for name, value in NETWORK.items()}
    recipe = training_recipe("demo", {**paths, **network, **changes, "mlflow_experiment": "photos"})
    train(recipe)
    return recipe


def _print(
    name: str,
    scale: float,
    steps: int | None,
    photos: list[DegradedPhoto],
    upscaler: Upscaler | None = None,
) -> None:
    """A line with the means over the photos."""
    rows = []
    for photo in photos:
        height, width = photo.original.shape[:2]
        image = bicubic(photo.small, (width, height))
        if upscaler is not None and steps is not None:
            image = upscaler.restore(image, steps=steps)
        sharpness = _gradient(image) / _gradient(photo.original)
        rows.append((*quality(photo.original, image), sharpness))
    psnr, similarity, sharpness = np.mean(rows, axis=0)
    print(
        f"| {name} | x{scale:g} | {steps or '-'} | {psnr:.2f} | {similarity:.4f} | "
        f"{sharpness:.2f} |",
        flush=True,
    )


def _gradient(image: np.ndarray) -> float:
    """Mean length of the luma's gradient."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    rows, columns = np.gradient(luma)
    return float(np.hypot(rows, columns).mean())


if __name__ == "__main__":
    main()
