"""Restoring on a CPU by each backend and precision, over PyTorch in fp32.

    python -m tests.benchmarks.backends [--recipe flowmapsr-small] [--side 512] [--threads 1]

The network of a recipe with random weights and the DCT codec; one picture in one step, in turn by
all of them. PSNR is between pictures of a backend and those of PyTorch in fp32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from pipelines.recipes.load import training_recipe
from tests.support.models import saved_model
from training.inference.upscaler import Upscaler
from training.settings.evaluation import Backend, Precision
from training.settings.model import ModelSettings

KINDS: tuple[tuple[Backend, Precision], ...] = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)
CALLS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="flowmapsr-small")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = training_recipe(options.recipe, {"manifest": "/data", "output": "/run"}).model
    assert isinstance(model, ModelSettings)
    image = np.random.default_rng(0).integers(0, 256, (options.side,) * 2 + (3,), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        saved_model(Path(folder) / "model", model, trained=True)
        upscalers = {
            kind: Upscaler.from_pretrained(
                Path(folder) / "model", device="cpu", backend=kind[0], precision=kind[1]
            )
            for kind in KINDS
        }
    pictures = {kind: one.restore(image, steps=1) for kind, one in upscalers.items()}
    seconds: dict[tuple[Backend, Precision], list[float]] = {kind: [] for kind in KINDS}
    for _ in range(CALLS):
        for kind, one in upscalers.items():
            start = time.perf_counter()
            one.restore(image, steps=1)
            seconds[kind].append(time.perf_counter() - start)
    exact, slowest = pictures[KINDS[0]].astype(float), median(seconds[KINDS[0]])
    print("| backend | precision | seconds | times as fast | PSNR |\n|---|---|---|---|---|")
    for kind in KINDS:
        error = np.square(pictures[kind] - exact).mean()
        psnr = f"{10 * np.log10(255**2 / error):.1f} dB" if error else "equal"
        taken = median(seconds[kind])
        print(f"| {kind[0]} | {kind[1]} | {taken:.2f} | {slowest / taken:.2f} | {psnr} |")


if __name__ == "__main__":
    main()
