"""A second system, defined outside of the package: it trains through the real loop and engine,
resumes, evaluates and upscales. Run as a module, this file is its launcher."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from datagen.errors import FlowmapsrError
from datagen.records import Settings
from datagen.samples.weights import read_weights
from datagen.tiles.boxes import Box
from tests.support.eventually import eventually
from tests.support.launch import start_workers
from tests.support.tiny import STAGE, write_photos
from training.data.loader import Batch
from training.evaluation.evaluate import evaluate
from training.inference.pictures.pixels import bicubic
from training.inference.upscaler import Upscaler
from training.restorer_protocol import InTiles, LoadOptions
from training.run import main
from training.run_dir.paths import StagePaths
from training.run_dir.records import ChosenStep
from training.settings.batch_fields import BatchFields
from training.settings.evaluation import EvaluationSettings
from training.settings.model import SystemSettings
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.system_protocol import StageInputs, System
from training.tracking.journal import read_metrics
from training.trainer import Losses, ObjectiveTrainer, StageModel, Term
from training.weights.model_folder import (
    WEIGHTS,
    ModelConfig,
    load_config,
    new_model_folder,
)


class ConvModel(SystemSettings):
    kind: Literal["bicubic_conv"] = "bicubic_conv"


class PixelError(Settings):
    kind: Literal["pixel_error"] = "pixel_error"


class ConvStageSettings(StageSettings):
    objective: PixelError  # type: ignore[assignment]

    @property
    def batch_fields(self) -> BatchFields:
        return BatchFields(latents=("lq",), hq_pixels=True)


class ConvRecipe(TrainingRecipe):
    model: ConvModel  # type: ignore[assignment]
    stages: tuple[ConvStageSettings, ...]


class ConvConfig(ModelConfig):
    model: ConvModel


class Corrected(nn.Module):
    """LQ pixels at HQ size -> HQ pixels: adds a convolution's output, at first 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, lq: Tensor) -> Tensor:
        return lq + self.conv(lq)


class PixelObjective:
    terms = ("loss/mse",)
    headline = "loss/mse"
    guarded = ("loss/mse",)

    def __init__(self, inputs: StageInputs) -> None:
        self.codec = inputs.codec

    def __call__(self, model: StageModel, batch: Batch, generator: torch.Generator) -> Losses:
        hq = batch.hq_pixels.float() / 127.5 - 1
        error = (model.net(self.codec.decode(batch.lq)) - hq).square().flatten(1).mean(dim=1)
        return Losses(error.mean(), {"loss/mse": Term.of(error)})


class ConvStage:
    tags = {"convolutions": "1"}
    load_report = None
    steps = (1,)

    def __init__(self, inputs: StageInputs) -> None:
        self.inputs = inputs
        self.net = Corrected()
        engine = inputs.engine(StageModel(self.net))
        self.trainer = ObjectiveTrainer(engine, PixelObjective(inputs), inputs.settings)

    def prepared(self, batch: Batch) -> Batch:
        return batch

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        return PixelObjective(self.inputs)(StageModel(self.net), batch, generator)

    def restored(self, batch: Batch, *, steps: int) -> Tensor:
        return self.net(self.inputs.codec.decode(batch.lq))

    def shown(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def pictures(self) -> dict[str, Image.Image]:
        return {}

    def save(self, folder: Path, chosen: ChosenStep) -> None:
        config = ConvConfig(model=ConvModel(), **self.inputs.config_fields(chosen))
        with new_model_folder(folder, config) as new:
            safetensors.torch.save_file(self.net.state_dict(), new / WEIGHTS)


class ConvRestorer:
    size_multiple = 1
    usual_steps = 1
    margin = 0

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.config = load_config(folder, ConvConfig)
        self.device = device
        self.net = Corrected().to(device)
        self.net.load_state_dict(read_weights(folder / WEIGHTS))

    def __call__(
        self,
        lq: Tensor,
        *,
        steps: int,
        in_tiles: InTiles,
        on_step: Callable[[], None],
        inside: Box | None = None,
    ) -> Tensor:
        restored = self.net(lq)
        return restored if inside is None else inside.of(restored)

    def parts(self) -> None:
        """It has no latents."""


class ConvSystem:
    name = "bicubic and a convolution"
    pictures_note = ""

    def fetch_inputs(self, inputs: StageInputs) -> None:
        """It needs no downloads."""

    def build(self, inputs: StageInputs) -> ConvStage:
        return ConvStage(inputs)

    def load(self, folder: Path, device: torch.device, options: LoadOptions) -> ConvRestorer:
        return ConvRestorer(folder, device)


def system_of(kind: str) -> System:
    assert kind == "bicubic_conv"
    return ConvSystem()


def _recipe(dataset: Path, output: Path) -> ConvRecipe:
    stage = {
        **STAGE,
        "name": "pixels",
        "objective": {"kind": "pixel_error"},
        "ema_decay": 0.9,
        "checkpoint_every_steps": 5,
    }
    return ConvRecipe.model_validate(
        {
            "manifest": str(dataset),
            "output": str(output),
            "workers": 2,
            "mlflow_experiment": "tests",
            "model": {},
            "stages": [stage],
        }
    )


def _train(recipe: ConvRecipe, folder: Path, *, stop_at: int | None = None) -> int:
    """Trains in workers of this module, to the end or until a checkpoint is written."""
    process = start_workers(recipe, folder, module=__name__)
    checkpoints = StagePaths(Path(recipe.output), "pixels").checkpoints
    if stop_at is not None:
        eventually((checkpoints / f"step-{stop_at:06d}" / "trainer_state.json").exists, process)
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert stop_at is not None or process.returncode == 0, output
    return process.returncode


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvRecipe:
    """A run that was stopped, resumed and finished."""
    folder = tmp_path_factory.mktemp("second")
    recipe = _recipe(dataset, folder / "run")
    assert _train(recipe, folder, stop_at=5) == 1
    assert not StagePaths(Path(recipe.output), "pixels").done.exists()
    _train(recipe, folder)
    return recipe


def test_it_trains_stops_and_resumes(trained: ConvRecipe) -> None:
    home = StagePaths(Path(trained.output), "pixels").root
    starts = [json.loads(line)["step"] for line in (home / "starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2 and 5 <= starts[1] < 60
    # Sixty steps lower it by less than batches differ; that weights change is seen when upscaling.
    losses = read_metrics(home)["loss/mse"].values
    assert len(losses) >= 6 and all(0 < loss < 0.1 for loss in losses)
    assert (home / "images" / "pictures-photo_1-000060.png").is_file()
    progress = json.loads((home / "progress.json").read_text())
    assert progress["headline"] == "loss/mse" and progress["headline_value"] > 0


def test_it_evaluates_and_upscales_by_its_own_name(trained: ConvRecipe, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    settings = EvaluationSettings(photos=str(photos), scales=(1.0, 2.0), steps=(1,))
    rows = evaluate(trained.output, settings, system_of=system_of).rows
    methods = [(row.method, row.scale) for row in rows]
    own = ConvSystem.name
    assert methods == [("bicubic", 1.0), (own, 1.0), ("bicubic", 2.0), (own, 2.0)]
    image = np.asarray(Image.open(photos / "0.png"))
    upscaler = Upscaler.from_pretrained(trained.output, system_of=system_of)
    assert upscaler.upscale(image, scale=1, steps=1).shape == image.shape
    larger = upscaler.upscale(image, scale=2, steps=1)
    assert not np.array_equal(larger, bicubic(image, (128, 128)))


def test_an_unknown_kind_is_named_with_the_known_ones(trained: ConvRecipe) -> None:
    with pytest.raises(
        FlowmapsrError, match=r"model\.kind='bicubic_conv'.*it knows flowmap and elir"
    ):
        Upscaler.from_pretrained(trained.output)


if __name__ == "__main__":
    sys.exit(main(ConvRecipe, system_of))
