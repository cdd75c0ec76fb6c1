"""FlowMapSR as a system: builds and trains its stages, saves its models and restores pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.samples.codecs import Codec
from datagen.tiles.boxes import Box
from training.data.loader import Batch
from training.flowmap.adversarial import Discriminator
from training.flowmap.adversarial_trainer import AdversarialTrainer, discriminator_settings
from training.flowmap.conditions import usual_guidance
from training.flowmap.fitting_codec import FittingCodec
from training.flowmap.initial import (
    InitialNetwork,
    check_later_weights,
    fetch_inputs,
    initial_network,
)
from training.flowmap.interpolant import intervals, sample
from training.flowmap.lora import add_lora, check_targets
from training.flowmap.model_folder import FlowMapConfig, load_matching_codec, load_net, save_model
from training.flowmap.network import FlowMapNet
from training.flowmap.objective import DynamicWeighting, FlowMapObjective, FlowMapStageModel
from training.flowmap.time_maps import draw_time_map, grid_times
from training.flowmap.unet_backends import run_by
from training.losses.perceptual import load_perceptual_loss
from training.monitoring.out_of_memory import explain_out_of_memory
from training.monitoring.startup_timer import startup
from training.restorer_protocol import InTiles, LatentPass, LoadOptions, Parts
from training.run_dir.records import ChosenStep
from training.settings.objective import FlowMatching, SelfDistillation
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.system_protocol import StageInputs
from training.trainer import Losses, ObjectiveTrainer, Trainer
from training.weights.model_folder import load_config


class FlowMapSystem:
    """Flow maps on latents: u(x, t, s) between LQ and HQ (FlowMapSR)."""

    name = "flowmapsr"
    pictures_note = (
        "`loss_over_times` is log10 of the loss over the times (t, s), `weighting_over_times` the "
        "learned weighting phi."
    )

    def fetch_inputs(self, inputs: StageInputs) -> None:
        fetch_inputs(inputs.recipe, inputs.folder)
        channels = inputs.manifests[0].require_codec().channels
        check_later_weights(inputs.recipe, inputs.folder, latent_channels=channels)

    def build(self, inputs: StageInputs) -> FlowMapStage:
        channels = inputs.manifests[0].require_codec().channels
        initial = initial_network(
            inputs.recipe, inputs.folder, latent_channels=channels, codec=inputs.codec
        )
        check_lora(inputs.recipe, initial.net)
        startup.mark("network")
        return FlowMapStage(inputs, initial)

    def load(self, folder: Path, device: torch.device, options: LoadOptions) -> FlowMapRestorer:
        config = load_config(folder, FlowMapConfig)
        guidance = options.guidance
        if guidance is not None and not config.model.guidance_conditioning:
            raise FlowmapsrError(
                f"the model in {folder} does not take the guidance strength as an input, so there "
                "is none to choose: leave it out, or train with model.guidance_conditioning=true"
            )
        net = load_net(folder, config, device, lora_scale=options.lora_scale)
        net.to(options.dtype(device))
        run_by(net.unet, options.backend)
        if guidance is None:
            guidance = config.guidance_strength
        return FlowMapRestorer(
            net,
            load_matching_codec(config, device),
            config,
            guidance,
            tile=options.side,
            max_memory=options.max_memory,
            fixed=options.same_everywhere,
        )


class FlowMapStage:
    """A stage with one engine, or an adversarial one with two."""

    steps = (1, 2, 4)

    def __init__(self, inputs: StageInputs, initial: InitialNetwork) -> None:
        settings = inputs.settings
        if settings.compile != "none" and inputs.device.type == "cpu":
            # torch 2.13's code generator for CPU was seen to give wrong gradients of this network.
            raise FlowmapsrError(
                f"stage {settings.name!r}: compile={settings.compile} works on a GPU only, and "
                "this worker has none: set compile=none"
            )
        self.inputs = inputs
        self.initial = initial
        self.load_report = initial.report
        self.tags = {"prompt_embeddings": initial.prompts.made_by}
        objective = settings.objective
        assert isinstance(objective, FlowMatching | SelfDistillation), "as the recipe checks"
        self.guidance = usual_guidance(objective.guidance)
        perceptual = load_perceptual_loss(settings.perceptual, inputs.codec, inputs.device)
        self.objective = FlowMapObjective(
            objective,
            perceptual_loss=perceptual,
            # Called in training steps only, when there is a trainer.
            gathered_parameters=lambda: self.trainer.engine.gathered_parameters(),
        )
        # One that gathers no parameters, as workers do not call it equally often.
        self._held_out_objective = FlowMapObjective(objective, perceptual_loss=perceptual)
        with explain_out_of_memory(settings):
            self.trainer = self._trainer(settings, initial.net)

    def _trainer(self, settings: StageSettings, net: FlowMapNet) -> Trainer:
        """The trainer of `net`, which an adversarial stage freezes and gives a LoRA."""
        if settings.gradient_checkpointing:
            net.unet.enable_gradient_checkpointing()
        adversarial = settings.adversarial
        if adversarial is None:
            weighting = DynamicWeighting() if settings.dynamic_weighting else None
            model = FlowMapStageModel(net, weighting, compiled=settings.compile)
            return ObjectiveTrainer(self.inputs.engine(model), self.objective, settings)
        add_lora(net, rank=adversarial.lora.rank, targets=adversarial.lora.target_modules)
        channels = net.latent_channels
        discriminator = Discriminator(adversarial.discriminator, latent_channels=channels)
        return AdversarialTrainer(
            self.inputs.engine(FlowMapStageModel(net, None, compiled=settings.compile)),
            self.inputs.engine(discriminator, discriminator_settings(settings, adversarial)),
            self.objective,
            stage=settings,
            settings=adversarial,
        )

    @property
    def model(self) -> FlowMapStageModel:
        module = self.trainer.engine.module
        assert isinstance(module, FlowMapStageModel)
        return module

    def prepared(self, batch: Batch) -> Batch:
        if batch.lq_pixels is None or "lq" in batch.latents:
            return batch
        lq = self.inputs.codec.encode(2 * batch.lq_pixels - 1)
        return replace(batch, latents={**batch.latents, "lq": lq})

    def losses(self, batch: Batch, generator: torch.Generator) -> Losses:
        # Not compiled, as it would be once more for every size of a group.
        plain = FlowMapStageModel(self.model.net, self.model.weighting)
        return self._held_out_objective(plain, batch, generator)

    def restored(self, batch: Batch, *, steps: int) -> Tensor:
        latents = sample(self.model.net.velocity(self.guidance), batch.lq, steps)
        return self.inputs.codec.decode(latents)

    def shown(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def pictures(self) -> dict[str, Image.Image]:
        loss_over_times = self.objective.time_map.take(self.inputs.device)
        images = {}
        if np.isfinite(loss_over_times).any():  # there were steps since the last pictures
            with np.errstate(divide="ignore", invalid="ignore"):
                logarithm = np.log10(loss_over_times)
            images["loss_over_times"] = draw_time_map(logarithm, "log10 of the loss")
        if self.model.weighting is not None:
            t, s = (times.to(self.inputs.device) for times in grid_times())
            phi = self.model.weighting(t, s).view(loss_over_times.shape).cpu().numpy()
            images["weighting_over_times"] = draw_time_map(phi, "phi")
        return images

    def save(self, folder: Path, chosen: ChosenStep) -> None:
        net, adversarial = self.initial.net, self.inputs.settings.adversarial
        config = FlowMapConfig(
            model=net.settings,
            latent_channels=net.latent_channels,
            codec=self.inputs.dataset_recipe.codec,
            codec_fingerprint=self.inputs.codec.fingerprint,
            guidance_strength=self.guidance,
            prompt_embeddings=self.initial.prompts.made_by,
            lora=None if adversarial is None else adversarial.lora,
            **self.inputs.config_fields(chosen),
        )
        save_model(folder, net, config, prompts=self.initial.prompts)


class FlowMapRestorer:
    """Encodes LQ, travels the flow map in a few steps, decodes HQ."""

    usual_steps = 2
    margin = 64

    def __init__(
        self,
        net: FlowMapNet,
        codec: Codec,
        config: FlowMapConfig,
        guidance: float,
        *,
        tile: int | None = None,
        max_memory: int | None = None,
        fixed: bool = False,
    ) -> None:
        """
        Args:
            tile, max_memory, fixed: of the codec's tiles, as in `FittingCodec`.
        """
        self.net = net
        self.codec = codec
        self.config = config
        self.guidance = guidance
        self.device = next(net.parameters()).device
        self.size_multiple = codec.downsample * net.downsample
        self._fitting = FittingCodec(
            codec, self.device, tile=tile, max_memory=max_memory, fixed=fixed
        )

    def __call__(
        self,
        lq: Tensor,
        *,
        steps: int,
        in_tiles: InTiles,
        on_step: Callable[[], None],
        inside: Box | None = None,
    ) -> Tensor:
        velocity = self.net.velocity(self.guidance)

        def blended(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            result = in_tiles(
                self.net,
                lambda part: velocity(part, t.expand(len(part)), s.expand(len(part))),
                x,
                pixels=self.codec.downsample,
                multiple=self.net.downsample,
            )
            on_step()
            return result

        latents = sample(blended, self._fitting.encode(lq), steps)
        if inside is None:
            return self._fitting.decode(latents)
        down = self.codec.downsample
        seen = inside.latents(down)
        return inside.within(seen.pixels(down), self._fitting.decode(latents, seen))

    def parts(self) -> Parts:
        return Parts(self.codec, self.codec.channels, self.codec.downsample, self._passes)

    def _passes(self, steps: int) -> Iterator[LatentPass]:
        velocity = self.net.velocity(self.guidance)
        for t, s in intervals(steps):

            def moved(x: Tensor, u: Tensor, span: float = t - s) -> Tensor:
                return x - span * u

            def of_tile(x: Tensor, t: float = t, s: float = s) -> Tensor:
                return velocity(x, x.new_full((len(x),), t), x.new_full((len(x),), s))

            yield LatentPass(of_tile, moved, self.net, self.net.downsample)


def check_lora(recipe: TrainingRecipe, net: FlowMapNet) -> None:
    """Refuses LoRA names that match no layer, before the first stage trains."""
    for stage in recipe.stages:
        if stage.adversarial is not None:
            check_targets(net, stage.adversarial.lora.target_modules)
