"""What a system offers: one kind of restoration model, as stage, evaluation and inference see it.

Network, objective and sampler of a system change together, so each has its own folder;
`training/systems.py` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from datagen.dataset.manifest import Dataset, Manifest
from datagen.samples.codecs import Codec
from datagen.settings import DatasetRecipe
from datagen.tiles.autoencoder import CodecTiles
from datagen.tiles.boxes import Box, Source
from training.data.loader import Batch
from training.engine.engine import Engine
from training.run_dir.datasets import digest_of
from training.run_dir.paths import StagePaths
from training.run_dir.records import ChosenStep
from training.settings.evaluation import Backend, Precision
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.trainer import Losses, Trainer
from training.weights.initialize import LoadReport
from training.weights.model_folder import ModelConfig


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


class InTiles(Protocol):
    """Runs a network on latents of any size (`training/inference/tiles/tiler.py`)."""

    def __call__(
        self,
        net: nn.Module,
        fn: Callable[[Tensor], Tensor],
        x: Tensor,
        *,
        pixels: int,
        multiple: int,
    ) -> Tensor:
        """fn of one picture's latents x (1, C, h, w), in tiles where memory asks for them.

        Args:
            net: the network that `fn` runs; all tiles share its group norms.
            fn: of one tile, or of several (N, C, h, w).
            pixels: side of what one latent shows.
            multiple: sides of tiles must be multiples of this.
        """


@dataclass(frozen=True)
class LatentPass:
    """A network's pass over latents, and what becomes of them."""

    fn: Callable[[Tensor], Tensor]
    """Of tiles of latents (N, C, h, w) on the device, or of all latents."""
    update: Callable[[Tensor, Tensor], Tensor]
    """Latents and what `fn` made of them -> the next ones, each from its own place."""
    net: nn.Module | None
    """What `fn` runs, whose group norms all tiles share; None where it needs all latents at
    once."""
    multiple: int = 1
    """Sides of tiles must be multiples of this."""
    is_step: bool = True
    """Whether it is one of the network evaluations that are asked for."""


class RowCodec(Protocol):
    """A codec whose pictures need not be whole, as `Codec`."""

    def encode_rows(
        self, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[Tensor]: ...

    def decode_rows(
        self, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Parts:
    """A restorer taken apart, for pictures whose pixels are not held whole."""

    codec: RowCodec
    channels: int
    """C of the latents."""
    downsample: int
    """H / h and W / w."""
    passes: Callable[[int], Iterable[LatentPass]]
    """Of a number of network evaluations, in order."""
    require: Callable[[tuple[int, int]], None] = lambda shape: None
    """Raises `FlowmapsrError` where memory does not hold what it needs of a picture of (H, W)."""


class Restorer(Protocol):
    """A trained model that restores pixels."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def size_multiple(self) -> int:
        """Both sides of an image must be multiples of this."""

    @property
    def usual_steps(self) -> int:
        """Network evaluations where no number is asked for."""

    @property
    def margin(self) -> int:
        """Pixels that it needs around an image; they mirror what is inside."""

    def __call__(
        self,
        lq: Tensor,
        *,
        steps: int,
        in_tiles: InTiles,
        on_step: Callable[[], None],
        inside: Box | None = None,
    ) -> Tensor:
        """An LQ image at its target size (1, 3, H, W) in [-1, 1] -> its HQ estimate, alike, by
        `steps` network evaluations, 1 or more. `on_step` is called after each; what it raises ends
        the work. Of the estimate only the pixels of `inside` are given; all when None."""

    def parts(self) -> Parts | None:
        """The same taken apart; None where it cannot be."""


EVERYWHERE = 1024
"""Side of a tile where it may not depend on a machine's memory, pixels."""


@dataclass(frozen=True)
class LoadOptions:
    """What may be chosen when a model is loaded. A system refuses strengths that it does not have;
    None leaves the model's own."""

    lora_scale: float | None = None
    guidance: float | None = None
    precision: Precision = "auto"
    seed: int = 0
    """Of the noise, in a system that restores with some: each image's is drawn from it anew."""
    tile: int | None = None
    """Side of the tiles of large pictures, pixels; the largest that fits into memory when None."""
    max_memory: int | None = None
    """What this process may hold on the device, bytes; most of what is free when None."""
    same_everywhere: bool = False
    """Whether memory decides about no tile, so that results are the same wherever they are made: a
    `tile` of None then is `EVERYWHERE`, and one that does not fit an error."""
    backend: Backend = "torch"
    """What runs the network."""

    @property
    def side(self) -> int | None:
        """Of the tiles of a system that takes them from here, pixels."""
        return EVERYWHERE if self.same_everywhere and self.tile is None else self.tile

    def dtype(self, device: torch.device) -> torch.dtype:
        """Of the network's weights and activations; `auto` is bfloat16 on a GPU that computes in
        it, else float32."""
        if self.precision != "auto":
            return torch.bfloat16 if self.precision == "bf16" else torch.float32
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32


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
