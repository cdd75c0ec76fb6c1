"""What a system offers: one kind of restoration model, as a stage trains it and as it is loaded
(`training/restorer_protocol.py`).

Network, objective and sampler of a system change together, so each has its own folder;
`training/systems.py` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from datagen.dataset.manifest import Dataset, Manifest
from datagen.samples.codecs import Codec
from datagen.settings import DatasetRecipe
from training.data.loader import Batch
from training.engine.engine import Engine
from training.restorer_protocol import LoadOptions, Restorer
from training.run_dir.datasets import digest_of
from training.run_dir.paths import StagePaths
from training.run_dir.records import ChosenStep
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.trainer import Losses, Trainer
from training.weights.initialize import LoadReport


@dataclass(frozen=True)
class StageInputs:
    """What one worker's part of a stage is built from."""

    recipe: TrainingRecipe
    folder: StagePaths
    datasets: tuple[Dataset, ...]
    dataset_recipe: DatasetRecipe
    """The first dataset's, whose degradations the model stands for in an evaluation."""
    codec: Codec
    """The first dataset's, which made the latents of all that are read."""
    device: torch.device
    world_size: int

    @property
    def settings(self) -> StageSettings:
        return self.recipe.stage(self.folder.name)

    @property
    def manifests(self) -> list[Manifest]:
        return [dataset.manifest for dataset in self.datasets]

    @property
    def dataset_digest(self) -> str:
        return digest_of([manifest.digest for manifest in self.manifests])

    def engine(self, module: nn.Module, settings: StageSettings | None = None) -> Engine:
        """The module on this worker's device, ready to train; every worker must call it."""
        own = settings or self.settings
        return Engine(module, own, device=self.device, world_size=self.world_size)

    def config_fields(self, chosen: ChosenStep) -> dict[str, Any]:
        """The fields of a `ModelConfig` that say what the model was trained on."""
        return {
            "degradation": self.dataset_recipe.degradation,
            "stage": self.folder.name,
            "step": chosen.step,
            "chosen": chosen.why,
            "recipe_digest": self.recipe.digest(),
            "dataset_digest": self.dataset_digest,
        }


class SystemStage(Protocol):
    """One stage of a system on one worker."""

    @property
    def trainer(self) -> Trainer: ...

    @property
    def load_report(self) -> LoadReport | None:
        """What was loaded as the first weights; None for random ones."""

    @property
    def tags(self) -> Mapping[str, str]:
        """What MLflow shows of the model beside its settings."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Network evaluations that validation restores with; the first one is told as progress."""

    def prepared(self, batch: Batch) -> Batch:
        """A batch on this worker's device, with all that the trainer takes."""

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        """The stage's losses of held-out samples; draws and terms as in training."""

    def restored(self, batch: Batch, *, steps: int) -> Tensor:
        """HQ estimates of a batch's LQ by `steps` network evaluations, pixels (B, 3, H, W) in
        [-1, 1], as the model would restore them now."""

    def shown(self, batch: Batch) -> Mapping[str, Tensor]:
        """More images of restored samples for their pictures, alike, by what is written below."""

    def pictures(self) -> dict[str, Image.Image]:
        """Pictures by name beside those of restored samples; every worker must call it."""

    def save(self, folder: Path, chosen: ChosenStep) -> None:
        """Writes the model folder, with whole parameters; only the first worker calls it.

        Args:
            chosen: the step whose weights the networks hold.
        """


class System(Protocol):
    """One kind of restoration model."""

    @property
    def name(self) -> str:
        """Of the method in tables of results."""

    @property
    def pictures_note(self) -> str:
        """What `SystemStage.pictures` shows, for the stage's page in MLflow (Markdown)."""

    def fetch_inputs(self, inputs: StageInputs) -> None:
        """Downloads and computes what `build` reads, once: only the first worker calls it."""

    def build(self, inputs: StageInputs) -> SystemStage:
        """Network and trainer of a stage, with their first weights; every worker must call it.

        Raises:
            FlowmapsrError: weights that do not fit, or settings of any stage of the recipe that
                turn out not to fit the network.
        """

    def load(self, folder: Path, device: torch.device, options: LoadOptions) -> Restorer:
        """The model in a model folder.

        Raises:
            FlowmapsrError: files that do not fit, or a strength that the model does not have.
        """


SystemOf = Callable[[str], System]
"""The system of a kind, as `model.kind` names it."""
