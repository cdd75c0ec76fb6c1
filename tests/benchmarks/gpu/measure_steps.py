"""Training steps of the 2.43 B network: by objective and size, adversarial, and compiled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from pipelines.recipes.load import training_recipe
from tests.benchmarks.gpu.clock import Clock
from tests.benchmarks.gpu.options import device, device_name, precision
from tests.benchmarks.gpu.results import Results
from tests.benchmarks.one_step import (
    FIRST_OF_TWO,
    Shape,
    free_memory,
    largest_costs,
    measured,
    median_seconds,
    new_trainer,
    now,
    peak_memory,
    random_batch,
    rate,
    shares,
    train_step,
)
from training.flowmap.network import FlowMapNet
from training.flowmap.objective import FlowMapObjective, FlowMapStageModel
from training.monitoring.mfu import counted_flops
from training.settings.model import ModelSettings
from training.settings.objective import FlowMatching, Guidance, NoPerceptual, SelfDistillation
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.trainer import ObjectiveTrainer, Trainer

SHAPE = Shape(channels=4, downsample=8)
GUIDED = Guidance()
OBJECTIVES: dict[str, FlowMatching | SelfDistillation] = {
    "FM": FlowMatching(),
    "SSD": SelfDistillation(),
    "SSD guided": SelfDistillation(guidance=GUIDED),
    "ESD": SelfDistillation(formulation="eulerian"),
    "LSD": SelfDistillation(formulation="lagrangian"),
    "ESD guided": SelfDistillation(formulation="eulerian", guidance=GUIDED),
    "LSD guided": SelfDistillation(formulation="lagrangian", guidance=GUIDED),
}
TINY_MODEL = ModelSettings(
    block_channels=(16, 32),
    layers_per_block=1,
    transformer_layers=(0, 1),
    attention_heads=(2, 2),
    norm_groups=8,
    time_channels=16,
    prompt_channels=16,
)
TINY_DISCRIMINATOR = {"channels": (8, 16), "strides": (2, 1, 1), "norm_groups": 4}
SHOWN_COSTS, KEPT_COSTS = 3, 40
COMPILE_SECONDS = 120.0
"""Least time that must be left to begin with a compiled network."""


@dataclass(frozen=True)
class Plan:
    """Which rows are measured; sides of photos in pixels, each with its micro batch."""

    objectives: tuple[str, ...]
    sizes: dict[int, int]
    """All objectives are measured with these."""
    sweep: dict[int, tuple[int, ...]]
    """Others, for flow matching alone."""
    without_checkpointing: dict[int, int]
    """Few enough that an estimate of their activations fits into 80 GB."""


FULL = Plan(
    tuple(OBJECTIVES),
    sizes={512: 16, 1024: 4},
    sweep={512: (4, 8, 32), 1024: (1, 2, 8)},
    without_checkpointing={512: 4, 1024: 1},
)
TINY = Plan(("FM", "LSD guided"), sizes={64: 2}, sweep={64: (1,)}, without_checkpointing={64: 1})


@dataclass(frozen=True)
class StepParts:
    """The parts of `measure` that train."""

    results: Results
    clock: Clock
    tiny: bool

    @property
    def plan(self) -> Plan:
        return TINY if self.tiny else FULL

    @property
    def times(self) -> dict[str, int]:
        return {"warm": 1, "timed": 1} if self.tiny else {"warm": 2, "timed": 5}

    def steps(self) -> None:
        """One network and one engine for all rows; the objective is exchanged between them."""
        self.results.table(
            f"A training step, ZeRO-1, AdamW at every step, {self._network()}",
            *("objective", "side", "micro batch", "checkpointing", "ms", "of which update"),
            *("images/s", "TFLOP/s", "MFU", "MFU without update", "memory GB"),
            f"{SHOWN_COSTS} largest costs",
        )
        plan = self.plan
        rows = [(name, side, n, True) for name in plan.objectives for side, n in plan.sizes.items()]
        rows += [("FM", side, n, True) for side, sizes in plan.sweep.items() for n in sizes]
        rows += [("FM", side, n, False) for side, n in plan.without_checkpointing.items()]
        start = now(device())
        trainer = self._trainer(gradient_checkpointing=True)
        began = f"{1000 * (now(device()) - start):.0f}"
        self.results.row(
            "(network and engine)", "", "", "", began, *[""] * 5, peak_memory(device())
        )
        per_image: dict[tuple[str, int], float] = {}
        try:
            for row in rows:
                with self.results.attempt(*row):
                    self.clock.require()
                    self._step_row(trainer, *row, per_image)
                if self.results.out_of_memory:
                    break
        finally:
            trainer.close()

    def _step_row(
        self,
        trainer: ObjectiveTrainer,
        name: str,
        side: int,
        size: int,
        checkpointing: bool,
        per_image: dict[tuple[str, int], float],
    ) -> None:
        place = device()
        unet = _network_of(trainer).unet
        if checkpointing:
            unet.enable_gradient_checkpointing()
        else:
            unet.disable_gradient_checkpointing()
        trainer.objective = FlowMapObjective(OBJECTIVES[name], perceptual_loss=None)
        free_memory(place)
        batch = random_batch(size, side, SHAPE, place)
        part = random_batch(size, side, SHAPE, place, FIRST_OF_TWO)
        step = partial(train_step, trainer, batch)
        whole = median_seconds(step, place, **self.times)
        without = median_seconds(partial(train_step, trainer, part), place, **self.times)
        step()  # ends the step that the parts have begun
        memory, costs = peak_memory(place), []
        if (name, side) not in per_image:
            with counted_flops(compiled=False) as counter:
                step()
            per_image[name, side] = counter.flops / size
            costs = largest_costs(step, place)
        flops = per_image[name, side] * size
        self.results.row(
            *(name, side, size, "yes" if checkpointing else "no", f"{1000 * whole:.0f}"),
            *(f"{1000 * (whole - without):.0f}", f"{size / whole:.2f}"),
            *rate(flops, whole, place, precision(place)),
            *(rate(flops, without, place, precision(place))[1], memory),
            shares(costs, SHOWN_COSTS),
            costs=costs[:KEPT_COSTS],
        )

    def adversarial(self) -> None:
        """The turns of both networks; the generator's part is a LoRA."""
        self.results.table(
            f"An adversarial step, LoRA of rank 64, {self._network()}",
            *("turn", "side", "micro batch", "ms", "images/s", "TFLOP/s", "MFU", "memory GB"),
            f"{SHOWN_COSTS} largest costs",
        )
        settings = self._recipe().stage("adversarial").adversarial
        assert settings is not None
        if self.tiny:
            discriminator = settings.discriminator.model_copy(update=TINY_DISCRIMINATOR)
            settings = settings.model_copy(update={"discriminator": discriminator})
        trainer = self._any_trainer(
            gradient_checkpointing=True,
            adversarial=settings,
            dynamic_weighting=False,
            objective=OBJECTIVES["SSD guided"],
        )
        turns = {"generator": settings.discriminator.warmup_steps, "discriminator": 0}
        try:
            for side, size in self.plan.sizes.items():
                for turn, number in turns.items():
                    with self.results.attempt(turn, side, size):
                        self.clock.require()
                        self._adversarial_row(trainer, turn, side, size, number)
        finally:
            trainer.close()

    def _adversarial_row(
        self, trainer: Trainer, turn: str, side: int, size: int, number: int
    ) -> None:
        place = device()
        batch = random_batch(size, side, SHAPE, place)
        step = partial(train_step, trainer, batch, step=number)
        seconds, memory, flops, costs = measured(step, place, **self.times)
        self.results.row(
            *(turn, side, size, f"{1000 * seconds:.0f}", f"{size / seconds:.2f}"),
            *rate(flops, seconds, place, precision(place)),
            *(memory, shares(costs, SHOWN_COSTS)),
            costs=costs[:KEPT_COSTS],
        )

    def compiled(self) -> None:
        """What `torch.compile` gains, and how long it takes before the first step."""
        self.results.table(
            f"The same steps with compile=student, {self._network()}",
            *("objective", "side", "micro batch", "checkpointing"),
            *("first step s", "ms", "images/s", "memory GB"),
        )
        for checkpointing in (True, False):
            sizes = self.plan.sizes if checkpointing else self.plan.without_checkpointing
            for side, size in sorted(sizes.items(), reverse=True):
                with self.results.attempt("FM, SSD", side, size, checkpointing):
                    self.clock.require(COMPILE_SECONDS, on_gpu=True)
                    self._compiled_rows(side, size, checkpointing)
                free_memory(device())
                # Of compiled code torch keeps only so many versions.
                torch.compiler.reset()

    def _compiled_rows(self, side: int, size: int, checkpointing: bool) -> None:
        place = device()
        trainer = self._trainer(compile="student", gradient_checkpointing=checkpointing)
        step = partial(train_step, trainer, random_batch(size, side, SHAPE, place))
        try:
            for name in ("FM", "SSD"):
                trainer.objective = FlowMapObjective(OBJECTIVES[name], perceptual_loss=None)
                start = now(place)
                step()
                first = now(place) - start
                seconds = median_seconds(step, place, **self.times)
                self.results.row(
                    *(name, side, size, "yes" if checkpointing else "no", f"{first:.1f}"),
                    *(f"{1000 * seconds:.0f}", f"{size / seconds:.2f}", peak_memory(place)),
                )
        finally:
            trainer.close()

    def _recipe(self) -> TrainingRecipe:
        recipe = training_recipe("flowmapsr-paper", ["manifest=/none", "output=/none"])
        return recipe.model_copy(update={"model": TINY_MODEL}) if self.tiny else recipe

    def _any_trainer(self, **changes: object) -> Trainer:
        """Of the recipe's first stage with these changes."""
        own: dict[str, object] = {
            "perceptual": NoPerceptual(),
            "compile": "none",
            "budgets": None,
            "zero_stage": 1,
            "precision": precision(device()),
        }
        recipe = self._recipe()
        settings: StageSettings = recipe.stages[0].model_copy(update={**own, **changes})
        return new_trainer(recipe, settings, SHAPE, device())

    def _trainer(self, **changes: object) -> ObjectiveTrainer:
        trainer = self._any_trainer(**changes)
        assert isinstance(trainer, ObjectiveTrainer)
        return trainer

    def _network(self) -> str:
        size = "a tiny network" if self.tiny else "2.43 B parameters"
        return f"{size}, {precision(device())}, {device_name()}"


def _network_of(trainer: Trainer) -> FlowMapNet:
    model = trainer.engine.module
    assert isinstance(model, FlowMapStageModel)
    return model.net
