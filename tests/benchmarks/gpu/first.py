"""Does everything run on this machine? A table with a row for each check.

Looks at libraries, card and connection; builds datasets with the DCT and with a VAE; trains every
kind of stage in every way (`cases.py`), each stopped by SIGTERM and resumed; compares losses of CPU
and GPU; evaluates, upscales, and runs the tests marked `gpu`. Trainings share the card, so their
times mean nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.recipes.load import dataset_recipe
from tests.benchmarks.gpu.card import ceilings, libraries
from tests.benchmarks.gpu.cases import (
    CASES,
    COMPARED_STAGE,
    FP32,
    FP32_ON_CPU,
    NEEDS_GPU,
    dataset_of,
    recipe_of,
)
from tests.benchmarks.gpu.dataset import build, random_vae
from tests.benchmarks.gpu.launching import (
    Launch,
    ended,
    environment,
    launch_torchrun,
    train_with_stop,
)
from tests.benchmarks.gpu.options import Options, device_name
from tests.benchmarks.gpu.photos import copied, photos_or_those_of_the_demo, smallest_first
from tests.benchmarks.gpu.results import NotMeasured, Results
from training.evaluation.evaluate import evaluate
from training.flowmap.objective import FM, TOTAL
from training.inference.upscaler import Upscaler
from training.run_dir.paths import StagePaths
from training.settings.evaluation import EvaluationSettings
from training.tracking.journal import Series, read_metrics

HELD_OUT = 2
MOST_PHOTOS = 24
SIDE, TINY_SIDE = 128, 64
"""Of the datasets' crops, pixels."""
LARGEST_LOSS_DIFFERENCE = 1e-3
"""Between CPU and GPU in fp32, relative."""
LARGEST_LEVEL_DIFFERENCE = 3
"""Between the pictures that CPU and GPU upscale in fp32, of 255."""
GPU_TESTS = Path(__file__).parents[2] / "gpu"
GPU_TESTS_SECONDS = 300.0
"""Their limit."""


@dataclass
class Checks:
    """All checks of one call."""

    options: Options
    launch: Launch = launch_torchrun
    only: Sequence[str] = ()
    """Names of checks; empty for all. What they need must be there or be named too."""
    at_once: int = 12
    """Trainings side by side."""
    limit: float = 200.0
    """Seconds of a training with its stop and resume."""
    results: Results = field(init=False)

    def __post_init__(self) -> None:
        self.results = Results(self.options.out, "first")

    @property
    def work(self) -> Path:
        return self.options.work / "first"

    @property
    def runs(self) -> Path:
        return self.work / "runs"

    def run(self) -> int:
        """All checks; the exit code."""
        photos = smallest_first(photos_or_those_of_the_demo(self.options.photos, self.work))
        trained_on = copied(photos[HELD_OUT : HELD_OUT + MOST_PHOTOS], self.work / "photos")
        held_out = copied(photos[:HELD_OUT], self.work / "held-out")
        columns = ("check", "result", "what it says", "seconds")
        self.results.table(f"Does everything run? {device_name()}", *columns)
        self._check("libraries", libraries)
        self._check("card", ceilings)
        self._check("connection", self._connection)
        self._check("dataset-dct8", partial(self._dataset, trained_on, "zero1"))
        self._check("dataset-vae", partial(self._dataset, trained_on, "vae"))
        with ThreadPoolExecutor(self.at_once) as pool:
            begun = {
                case: pool.submit(self._train, case)
                for case in CASES
                if self._wanted(f"training-{case}")
            }
            for case, training in begun.items():
                self._check(f"training-{case}", training.result)
        self._check("same-losses", self._same_losses)
        self._check("evaluation", partial(self._evaluation, held_out))
        self._check("upscaling", partial(self._upscaling, held_out))
        self._check("gpu-tests", self._gpu_tests)
        return self.results.exit_code()

    def _wanted(self, name: str) -> bool:
        return not self.only or name in self.only

    def _check(self, name: str, work: Callable[[], str]) -> None:
        if self._wanted(name):
            self.results.check(name, work)

    def _connection(self) -> str:
        process = self.launch("tests.benchmarks.gpu.connection", [], environment())
        said = ended(process, time.monotonic() + self.limit)
        if process.returncode:
            raise RuntimeError(said)
        return said.strip().splitlines()[-1]

    def _dataset(self, photos: Path, case: str) -> str:
        """The dataset that a case trains on."""
        tiny = self.options.tiny
        changes: dict[str, Any] = {
            "sources": [str(photos)],
            "output": str(dataset_of(case, self.work)),
            "samples_per_photo": 4,
            "samples_per_shard": 16,
            "buckets.budgets": [{"side": TINY_SIDE if tiny else SIDE}],
        }
        if case == "vae":
            codec = random_vae(self.options.work, tiny=tiny)
            changes["codec"] = codec.model_dump(mode="json")
        return build(dataset_recipe("demo", changes), one_process=tiny)

    def _train(self, case: str) -> str:
        """Trains a case with a stop in between; its last losses."""
        if case in NEEDS_GPU and not torch.cuda.is_available():
            raise NotMeasured("there is no GPU here")
        recipe = recipe_of(case, self.work, tiny=self.options.tiny)
        env = environment(on_cpu=case == FP32_ON_CPU)
        starts = train_with_stop(recipe, self.launch, limit=self.limit, env=env)
        losses = ", ".join(
            f"{stage.name} {self._losses(case, stage.name, TOTAL).values[-1]:.4g}"
            for stage in recipe.stages
        )
        return f"{starts} starts; {TOTAL}: {losses}"

    def _losses(self, case: str, stage: str, term: str) -> Series:
        return read_metrics(StagePaths(self.runs / case, stage).root, prefix=term)[term]

    def _same_losses(self) -> str:
        ours, theirs = (self._losses(case, COMPARED_STAGE, FM) for case in (FP32, FP32_ON_CPU))
        expected = dict(zip(theirs.steps, theirs.values, strict=True))
        apart = {
            step: abs(value / expected[step] - 1)
            for step, value in zip(ours.steps, ours.values, strict=True)
            if step in expected
        }
        if not apart:
            raise RuntimeError("there is no step at which both reported")
        worst = max(apart.values())
        said = f"{FM} of GPU and CPU: {worst:.1e} apart at most, over {len(apart)} reports"
        if worst > LARGEST_LOSS_DIFFERENCE:
            raise RuntimeError(f"{said}: {apart}")
        return said

    def _model(self) -> str:
        """A run whose stages are finished."""
        finished = [case for case in CASES if list(self.runs.glob(f"{case}/stages/*/model"))]
        if not finished:
            raise RuntimeError("no training has made a model")
        return str(self.runs / finished[0])

    def _evaluation(self, photos: Path) -> str:
        settings = EvaluationSettings(photos=str(photos), scales=(4.0,))
        return ", ".join(
            f"{row.method} {row.steps}: {row.psnr:.2f} dB {row.seconds:.2f} s"
            for row in evaluate(self._model(), settings).rows
        )

    def _upscaling(self, photos: Path) -> str:
        """Equal to the CPU's in fp32; what models are loaded in otherwise is only told."""
        photo = Image.open(min(photos.iterdir()))

        def levels(**where: Any) -> np.ndarray:
            upscaler = Upscaler.from_pretrained(self._model(), **where)
            picture = upscaler.upscale(photo, scale=2, steps=2)
            picture.save(self.options.out / "upscaled.png")
            return np.asarray(picture).astype(int)

        on_cpu = levels(device="cpu", precision="fp32")
        same, usual = (np.abs(levels(precision=kind) - on_cpu) for kind in ("fp32", "auto"))
        said = (
            f"{on_cpu.shape}, at most {same.max()} levels from the CPU's; "
            f"in the usual precision {usual.max()}, {usual.mean():.4f} on average"
        )
        if same.max() > LARGEST_LEVEL_DIFFERENCE:
            raise RuntimeError(said)
        return said

    def _gpu_tests(self) -> str:
        """Those in `tests/gpu`; without a GPU their rehearsal."""
        marked = "gpu" if torch.cuda.is_available() else "not gpu and not slow"
        words = ["-q", "-m", marked, "-p", "no:cacheprovider", str(GPU_TESTS)]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(self.limit, GPU_TESTS_SECONDS),
        )
        if done.returncode:
            raise RuntimeError(done.stdout)
        return done.stdout.strip().splitlines()[-1]
