"""Trains a model in the time there is, evaluates every finished stage, and packs it up.

Builds the dataset, trains until SECONDS are over (then SIGTERM, so that a checkpoint is saved), and
evaluates on photos that were held out. The same command goes on from the checkpoint. On a machine
where nothing is left, start from a model that came back: `stages.warmup.init_from=FOLDER/`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.settings import DatasetRecipe
from pipelines.recipes.load import dataset_recipe, training_recipe
from tests.benchmarks.gpu.clock import Clock
from tests.benchmarks.gpu.dataset import build
from tests.benchmarks.gpu.launching import Launch, launch_torchrun, start_training, stopped
from tests.benchmarks.gpu.options import Options, device_name
from tests.benchmarks.gpu.pack import pack
from tests.benchmarks.gpu.photos import middles, photos_or_those_of_the_demo, smallest_first
from tests.benchmarks.gpu.results import Results
from training.evaluation.comparison import comparison
from training.evaluation.evaluate import evaluate
from training.evaluation.photos import degraded_photos
from training.inference.upscaler import Upscaler
from training.run_dir.paths import RunPaths, StagePaths, stage_paths
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe
from training.tracking.summary.stage_facts import facts_of_stages
from training.tracking.summary.stage_table import stage_table
from training.tracking.summary.status import run_status

RECIPE = "flowmapsr-tiny"
SCALES, NFE = (4.0, 8.0), (1, 2, 4)
HELD_OUT, TINY_HELD_OUT = 8, 1
"""Photos, of the largest."""
MIDDLE, TINY_MIDDLE = 512, 64
"""Side of the middle of a held-out photo, pixels."""
SHOWN = 2
"""Photos in a stage's picture."""
TOLD_EVERY = 30.0
"""Seconds between lines on where the training is."""
TINY_STAGE = {"global_batch": 4, "micro_batch": 4, "steps": 8, "checkpoint_every_steps": 4}
TINY_DATASET = ["samples_per_photo=2", "samples_per_shard=4", "buckets.budgets=[{side: 64}]"]
TINY_TRAINING = [
    "model.block_channels=[16, 32]",
    "model.layers_per_block=1",
    "model.transformer_layers=[0, 1]",
    "model.attention_heads=[2, 2]",
    "model.norm_groups=8",
    "loader_threads=1",
    "stages.adversarial.adversarial.lora.rank=4",
    "stages.adversarial.adversarial.discriminator.channels=[16, 16]",
    "stages.adversarial.adversarial.discriminator.strides=[2, 1, 1]",
    "stages.adversarial.adversarial.discriminator.norm_groups=4",
    "stages.adversarial.adversarial.discriminator.warmup_steps=2",
]


@dataclass(frozen=True)
class Training:
    """One call: a dataset and a run in the work folder, and what is brought back."""

    options: Options
    seconds: float
    recipe: str = RECIPE
    changes: Sequence[str] = ()
    """Settings of the training, `a.b=value`."""
    dataset_changes: Sequence[str] = ()
    first_part: int = 0
    """Of the model, for what did not fit into an earlier call's files."""
    launch: Launch = launch_torchrun

    @property
    def work(self) -> Path:
        return self.options.work / "train"

    def run(self) -> int:
        """Trains, evaluates and packs; the exit code."""
        clock = Clock(self.seconds)
        results = Results(self.options.out, "train")
        self.work.mkdir(parents=True, exist_ok=True)
        sources, held_out = self._divided()
        results.say(f"dataset: {build(self._dataset(sources), one_process=self.options.tiny)}")
        recipe = self._training()
        results.say(f"training: {clock.left:.0f} s are left for it, {device_name()}")
        with results.attempt("training"):
            results.say(self._train(recipe, clock))
        results.say(f"after {clock.seconds:.0f} s:\n")
        results.say(stage_table(recipe, facts_of_stages(recipe)).to_markdown())
        results.table(
            f"Means over {len(list(held_out.iterdir()))} held-out photos",
            *("stage", "method", "scale", "steps", "PSNR dB", "SSIM", "s"),
        )
        for stage in stage_paths(recipe):
            if stage.model.is_dir():
                with results.attempt(stage.name):
                    self._evaluate(stage, held_out, results)
        with results.attempt("packing"):
            for line in pack(stage_paths(recipe), self.options.out, first_part=self.first_part):
                results.say(line)
        results.say(f"{clock.seconds:.0f} s in all")
        return results.exit_code()

    def _divided(self) -> tuple[Path, Path]:
        """A list of the photos to train on, and a folder with the middles of the others."""
        folder = photos_or_those_of_the_demo(self.options.photos, self.work)
        photos = smallest_first(folder)
        count, side = (TINY_HELD_OUT, TINY_MIDDLE) if self.options.tiny else (HELD_OUT, MIDDLE)
        if len(photos) <= count:
            raise SystemExit(f"{folder} has {len(photos)} photos: more than {count} are needed")
        listed = self.work / "photos.txt"
        listed.write_text("".join(f"{path}\n" for path in photos[:-count]))
        return listed, middles(photos[-count:], self.work / "held-out", side=side)

    def _dataset(self, sources: Path) -> DatasetRecipe:
        places = [f"sources=[{sources}]", f"output={self.work / 'dataset'}"]
        tiny = TINY_DATASET if self.options.tiny else []
        return dataset_recipe(self.recipe, [*places, *tiny, *self.dataset_changes])

    def _training(self) -> TrainingRecipe:
        places = [f"manifest={self.work / 'dataset'}", f"output={self.work / 'run'}"]
        tiny = TINY_TRAINING if self.options.tiny else []
        recipe = training_recipe(self.recipe, [*places, *tiny, *self.changes])
        if not self.options.tiny:
            return recipe
        stages: list[dict[str, Any]] = [
            {**stage.model_dump(mode="json"), **TINY_STAGE} for stage in recipe.stages
        ]
        return TrainingRecipe.model_validate({**recipe.model_dump(mode="json"), "stages": stages})

    def _train(self, recipe: TrainingRecipe, clock: Clock) -> str:
        """Trains to the end or until the time is over; how it ended.

        Raises:
            RuntimeError: it failed, with what it printed.
        """
        process = start_training(recipe, self.launch, dict(os.environ))
        while clock.left > 0:
            try:
                said = process.communicate(timeout=max(0.1, min(TOLD_EVERY, clock.left)))[0]
            except subprocess.TimeoutExpired:
                print(f"{clock.seconds:.0f} s: {_standing(recipe)}", flush=True)
                continue
            if process.returncode:
                raise RuntimeError(said)
            return "the training is finished"
        said = stopped(process)
        (self.work / "training.log").write_text(said)
        return f"stopped by the clock; {_standing(recipe)}"

    def _evaluate(self, stage: StagePaths, held_out: Path, results: Results) -> None:
        settings = EvaluationSettings(photos=str(held_out), scales=SCALES, steps=NFE)
        for row in evaluate(str(stage.model), settings).rows:
            results.row(
                *(stage.name, row.method, f"x{row.scale:g}", row.steps or "-"),
                *(f"{row.psnr:.2f}", f"{row.ssim:.4f}", f"{row.seconds:.3f}"),
            )
        upscaler = Upscaler.from_pretrained(stage.model)
        shown = list(degraded_photos(settings, upscaler.config.degradation, SCALES[0]))[:SHOWN]
        picture = comparison(upscaler, shown, NFE)
        picture.save(stage.run / f"{stage.name}.jpg", quality=88)


def _standing(recipe: TrainingRecipe) -> str:
    run = Path(recipe.output)
    if not RunPaths(run).recipe.is_file():
        return "it has not begun"
    return ", ".join(
        f"{stage.stage} {stage.step}/{stage.steps}"
        + (f" {stage.images_per_second:.0f} images/s" if stage.images_per_second else "")
        + (f" {stage.headline} {stage.headline_value:.4g}" if stage.headline_value else "")
        for stage in run_status(run).stages
        if stage.state != "waiting"
    )
