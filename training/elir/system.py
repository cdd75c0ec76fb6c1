"""ELIR as a system: builds and trains its stages, saves its models and restores pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from datagen.errors import FlowmapsrError
from training.data.loader import Batch
from training.data.seeded import seeded
from training.elir.initial import initial_net
from training.elir.model_folder import ElirConfig, load_networks, save_model
from training.elir.restorer import ElirRestorer
from training.elir.sampler import euler_states
from training.elir.stage_objective import ElirNet, ElirObjective, ElirStageModel, pixels_of
from training.monitoring.out_of_memory import explain_out_of_memory
from training.monitoring.startup_timer import startup
from training.restorer_protocol import LoadOptions
from training.run_dir.paths import StagePaths
from training.run_dir.records import ChosenStep
from training.settings.elir import ElirModelSettings, LatentConsistency, TinyAutoencoder
from training.settings.initial_weights import is_stage
from training.system_protocol import StageInputs
from training.trainer import Losses, ObjectiveTrainer
from training.weights.initialize import LoadReport, fetch_weights
from training.weights.model_folder import load_config


class ElirSystem:
    """A coarse estimate of HQ latents, made sharp by a few steps of a velocity field (ELIR)."""

    name = "elir"
    pictures_note = ""

    def fetch_inputs(self, inputs: StageInputs) -> None:
        """Loads what later stages start from, too: they shall not stop a training in its middle."""
        recipe, model = inputs.recipe, _model_settings(inputs)
        for stage in recipe.stages_from(inputs.folder.name):
            folder = StagePaths(inputs.folder.run, stage.name)
            fetch_weights(recipe, folder)
            name = recipe.initial_weights_of(stage.name)
            if name is None or not is_stage(name):
                initial_net(model, name, folder)

    def build(self, inputs: StageInputs) -> ElirStage:
        model = _model_settings(inputs)
        name = inputs.recipe.initial_weights_of(inputs.folder.name)
        net, report = initial_net(model, name, inputs.folder)
        startup.mark("network")
        return ElirStage(inputs, model, net, report)

    def load(self, folder: Path, device: torch.device, options: LoadOptions) -> ElirRestorer:
        config = load_config(folder, ElirConfig)
        for field, value in (("lora_scale", options.lora_scale), ("guidance", options.guidance)):
            if value is not None:
                raise FlowmapsrError(
                    f"{field}={value:g}: the model in {folder} is of kind elir, which has none: "
                    "leave it out"
                )
        if options.tile is not None:
            raise FlowmapsrError(
                f"tile={options.tile}: the model in {folder} is of kind elir, which restores in "
                "tiles of its own: leave it out"
            )
        if options.backend != "torch":
            raise FlowmapsrError(
                f"backend={options.backend}: the model in {folder} is of kind elir, which PyTorch "
                "runs: leave it out"
            )
        networks = load_networks(folder, config, device)
        dtype = options.dtype(device)
        return ElirRestorer(networks, config, dtype, options.seed, options.max_memory)


class ElirStage:
    """A stage with one engine around what is trained of the networks."""

    tags: Mapping[str, str] = {}

    def __init__(
        self,
        inputs: StageInputs,
        model: ElirModelSettings,
        net: ElirNet,
        report: LoadReport | None,
    ) -> None:
        settings = inputs.settings
        assert isinstance(settings.objective, LatentConsistency), "as the recipe checks"
        self.inputs = inputs
        self.model, self.net, self.load_report = model, net, report
        self.settings = settings.objective
        self.objective = ElirObjective(settings.objective, model)
        self.steps = (settings.objective.segments,)
        net.encoder.requires_grad_(settings.objective.train_encoder)
        net.field.requires_grad_(model.has_field)
        # The block transforms have no weights to speak of, and lose much in bf16.
        rounded = settings.precision == "bf16" and isinstance(model.codec, TinyAutoencoder)
        dtype = torch.bfloat16 if rounded else torch.float32
        for half in (net.networks.frozen_encoder, net.networks.decoder):
            half.to(inputs.device, dtype)
        with explain_out_of_memory(settings):
            engine = inputs.engine(ElirStageModel(net))
            self.trainer = ObjectiveTrainer(engine, self.objective, settings)

    def prepared(self, batch: Batch) -> Batch:
        return batch

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        return self.objective(ElirStageModel(self.net), batch, generator)

    def restored(self, batch: Batch, *, steps: int) -> Tensor:
        *_, last = self._latents(batch, steps).values()
        return self._decoded(last)

    def shown(self, batch: Batch) -> dict[str, Tensor]:
        """The coarse estimate, and what each step but the last makes of it."""
        latents = self._latents(batch, self.steps[0])
        return {name: self._decoded(z) for name, z in list(latents.items())[:-1]}

    def _latents(self, batch: Batch, steps: int) -> dict[str, Tensor]:
        """Coarse ones and those after each step, by name. The noise of a sample follows from its
        key: it is the same at all times, for any number of workers."""
        nets, (_, y) = self.net.networks, pixels_of(batch)
        coarse = nets.coarse(nets.encoder(y))
        if not self.model.has_field:
            return {"coarse": coarse}
        seeds = [int(seeded("noise", key).integers(2**62)) for key in batch.keys]
        start = coarse + self.settings.sigma_s * self.net.noise(seeds, y)
        states = enumerate(euler_states(nets.field, start, steps), 1)
        return {"coarse": coarse, **{f"step {i} of {steps}": z for i, z in states}}

    def _decoded(self, z: Tensor) -> Tensor:
        return 2 * self.net.networks.decoder(z) - 1

    def pictures(self) -> dict[str, Image.Image]:
        return {}

    def save(self, folder: Path, chosen: ChosenStep) -> None:
        config = ElirConfig(
            model=self.model,
            latent_channels=self.net.codec.channels,
            objective=self.settings,
            **self.inputs.config_fields(chosen),
        )
        save_model(folder, self.net.networks, config)


def _model_settings(inputs: StageInputs) -> ElirModelSettings:
    model = inputs.recipe.model
    assert isinstance(model, ElirModelSettings), "the system is that of model.kind"
    return model
