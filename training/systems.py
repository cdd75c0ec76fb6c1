"""A stage's settings and network to its trainer: the one place that tells kinds of stage apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from datagen.errors import FlowmapsrError
from datagen.samples.codecs import Codec
from training.engine.engine import Engine
from training.flowmap.adversarial_trainer import AdversarialTrainer, discriminator_settings
from training.flowmap.discriminator import Discriminator
from training.flowmap.lora import add_lora
from training.flowmap.network import FlowMapNet
from training.flowmap.objective import FlowMapObjective, TrainedModel
from training.flowmap.weighting import DynamicWeighting
from training.losses.perceptual import load_regulariser
from training.settings.adversarial import AdversarialSettings
from training.settings.stage import StageSettings
from training.trainer import ObjectiveTrainer, Trainer


@dataclass(frozen=True)
class Builder:
    """What every part of a trainer needs to know."""

    settings: StageSettings
    codec: Codec
    device: torch.device
    world_size: int

    def trainer(self, net: FlowMapNet) -> Trainer:
        """The trainer of `net`, which an adversarial stage freezes and gives a LoRA."""
        settings = self.settings
        if settings.compile != "none" and self.device.type == "cpu":
            # torch 2.13's code generator for CPU was seen to give wrong gradients of this network.
            raise FlowmapsrError(
                f"stage {settings.name!r}: compile={settings.compile} works on a GPU only, and "
                "this worker has none: set compile=none"
            )
        if settings.gradient_checkpointing:
            net.unet.enable_gradient_checkpointing()
        regulariser = load_regulariser(settings.perceptual, self.codec, self.device)
        objective = FlowMapObjective(
            settings.objective, regulariser=regulariser, in_lockstep=settings.zero_stage == 3
        )
        if settings.adversarial is not None:
            return self._adversarial(settings.adversarial, net, objective)
        weighting = DynamicWeighting() if settings.dynamic_weighting else None
        model = TrainedModel(net, weighting, compiled=settings.compile)
        return ObjectiveTrainer(self._engine(model, settings), objective, settings)

    def _adversarial(
        self, adversarial: AdversarialSettings, net: FlowMapNet, objective: FlowMapObjective
    ) -> Trainer:
        """Network with LoRA and fresh discriminator, an engine for each."""
        lora = adversarial.lora
        add_lora(net, rank=lora.rank, targets=lora.target_modules)
        model = TrainedModel(net, None, compiled=self.settings.compile)
        own = discriminator_settings(self.settings, adversarial)
        discriminator = Discriminator(
            adversarial.discriminator, latent_channels=net.latent_channels
        )
        return AdversarialTrainer(
            self._engine(model, self.settings),
            self._engine(discriminator, own),
            objective,
            stage=self.settings,
            settings=adversarial,
        )

    def _engine(self, module: nn.Module, settings: StageSettings) -> Engine:
        return Engine(module, settings, device=self.device, world_size=self.world_size)
