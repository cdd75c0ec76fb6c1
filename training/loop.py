"""The training loop: batches to optimizer steps, checkpoints and metrics, for any trainer.

The optimizer step itself is the trainer's (`training/trainer.py`).
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io import storage
from training.checkpoints.reader import Damaged
from training.checkpoints.records import CheckpointOrigin, TrainerState
from training.checkpoints.store import Checkpoints
from training.data.loader import Batch, BatchLoader
from training.data.planned import Position
from training.data.seeded import seeded
from training.data.skipped import SkippedList, SkippedSample
from training.monitoring.loss_guard import LossGuard
from training.monitoring.meter import Meter, memory_gb
from training.monitoring.mfu import FlopMeter
from training.monitoring.out_of_memory import explain_out_of_memory
from training.monitoring.startup_timer import startup
from training.monitoring.system_metrics import HostMetrics
from training.monitoring.watchdog import Watchdog
from training.run_dir.best_effort import best_effort
from training.run_dir.records import ChosenStep, EndedBy, StageProgress
from training.settings.stage import StageSettings
from training.system_protocol import StageInputs
from training.tracking.reporter import Reporter
from training.trainer import Losses, StepTerms, Trainer
from training.validation.best import BestSoFar
from training.validation.figures import over_time_table
from training.validation.validator import Validation

log = logging.getLogger(__name__)

LOG_EVERY = 10
PROGRESS_SECONDS = 2.0


@dataclass(frozen=True)
class Loop:
    """One worker's view of a stage, ready to run."""

    inputs: StageInputs
    origin: CheckpointOrigin
    trainer: Trainer
    loader: BatchLoader
    checkpoints: Checkpoints
    prepare: Callable[[Batch], Batch]
    """Adds what the trainer takes to a batch on its device."""
    validate: Callable[..., Validation]
    """Measures the model that the stage would end with now, with `all_metrics` or without those
    that the recipe adds; every worker must call it."""
    best: BestSoFar
    reporter: Reporter
    stop_requested: Callable[[], bool]
    skipped: SkippedList
    flop_meter: FlopMeter
    hosts: HostMetrics
    watchdog: Watchdog
    guard: LossGuard

    @property
    def settings(self) -> StageSettings:
        return self.inputs.settings

    def run(self) -> Position:
        """Trains from the last checkpoint to the end of the stage, or to a requested stop.

        Every worker runs the same steps. A checkpoint is there whenever this returns.

        Raises:
            FlowmapsrError: loss or gradient is not finite, the loss diverges, or too many samples
                cannot be used, and the last checkpoint stays as it is; or checkpoints cannot be
                read, or the last one not be written.
        """
        startup.mark("tracking")
        state = self.checkpoints.resume(self.trainer, self.origin)
        startup.mark("checkpoint")
        if state is not None and state.step > self.settings.steps:
            raise FlowmapsrError(
                f"stages.{self.settings.name}.steps = {self.settings.steps} is less than the "
                f"{state.step} steps that are done; give at least {state.step}"
            )
        if state is not None:
            self.guard.errors.extend(state.errors)
            self.best.restore(state.best)
        try:
            return self._train(Position() if state is None else state.position)
        finally:
            self.checkpoints.close()

    def _train(self, position: Position) -> Position:
        batches = self.loader.batches(position)
        names = self.trainer.terms
        skipped_checkpoints = self.checkpoints.skipped_checkpoints
        self.reporter.started(position.step, skipped_checkpoints=skipped_checkpoints)
        meter, device = Meter(self.trainer.headline), self.inputs.device
        if position.step == 0:
            # To compare with; MLflow's slider starts there.
            self._validate(position, meter)
            startup.mark("validation")
        stopping = False
        while not stopping and not self.finished(position):
            sums = torch.zeros(len(names), 2, dtype=torch.float64, device=device)
            keys: list[str] = []
            skipped: list[SkippedSample] = []
            step, seen = position.step, position.images_seen
            while position.step == step:
                batch = self.prepare(meter.waited(lambda: next(batches)).to(device))
                meter.degraded(batch.degrade_seconds)
                skipped += self.skipped.new_ones(batch.skipped)
                with self.flop_meter.micro_step(self.trainer.step_kind(step), batch):
                    losses = self._micro_step(batch, step)
                self.watchdog.alive(f"step {step}, micro step {batch.micro.index}")
                if batch.micro.weight:
                    keys += batch.keys
                    sums += losses.stacked(names)
                if batch.micro.is_last:
                    position = batch.position
            terms, (stopping, skipping) = self._reduce(sums, self.stop_requested(), bool(skipped))
            self._check_loss(terms, step, keys)
            if skipping:
                self._note(skipped)
            self.trainer.end_step(terms, step=step)
            if "first_step" not in startup.seconds:  # the last phase of a start
                startup.mark("first_step")
                self.reporter.first_step(position.step, startup.seconds)
            meter.add(terms, images=position.images_seen - seen)
            improved = False
            if position.step % self.settings.validate_every_steps == 0 or self.finished(position):
                improved = self._validate(position, meter)
            last = stopping or self.finished(position)
            if stopping and self.loader.rank == 0:
                name = self.settings.name
                log.info("%s: stopping, with a checkpoint of step %d", name, position.step)
            due = position.step % self.settings.checkpoint_every_steps == 0
            if last or improved or due:
                # The one before may still be on its way to a slow or busy storage.
                self.watchdog.alive(f"step {step}, its checkpoint", next_is_long=True)
                with self.reporter.doing("saving a checkpoint"):
                    self._save(position)
                self.watchdog.alive(f"the checkpoint of step {position.step}", next_is_long=last)
            if last:
                with self.reporter.doing("saving a checkpoint"):
                    self.checkpoints.finish()
                self.watchdog.alive(f"the last checkpoint, of step {position.step}")
            self._report(meter, position, last)
        batches.close()
        return position

    def finished(self, position: Position) -> bool:
        """Whether the stage is done at `position`, by its steps, convergence or early stopping."""
        ended = self.trainer.converged or self.best.exhausted
        return ended or position.step >= self.settings.steps

    def why_finished(self, end: Position) -> str:
        """Why the stage was done at `end`, and for a stop that never came how far that was."""
        steps = self.settings.steps
        told = [told for told in (self.trainer.convergence, self.best.early_stopping()) if told]
        if self.trainer.converged:
            return f"converged at step {end.step} of {steps}: {self.trainer.convergence}"
        if self.best.exhausted:
            return f"stopped early at step {end.step} of {steps}: {self.best.early_stopping()}"
        return "; ".join([f"all {steps} steps", *(f"no early end: {one}" for one in told)])

    @property
    def ended_by(self) -> EndedBy:
        """The setting by which the stage was done."""
        if self.trainer.converged:
            return "adversarial.convergence"
        return "early_stopping" if self.best.exhausted else "steps"

    def choose_model(self, end: Position) -> ChosenStep:
        """After the last step: restores the checkpoint that becomes the model, if that is not the
        state at `end`; every worker must call it."""
        best, metric = self.best.best, self.settings.best_metric
        newest = self.checkpoints.newest
        last = ChosenStep(end.step, "last", "" if newest is None else newest.sha256)
        if self.settings.model_from == "last" or best is None:
            return last
        why = f"best {metric}: {best.value:.6g}"
        if best.step == end.step:
            return last._replace(why=why)
        try:
            commit = self.checkpoints.restore_step(self.trainer, best.step, self.origin)
        except Damaged as damage:
            if self.loader.rank == 0:
                log.warning("the model is that of the last step, not of the best: %s", damage)
            return last._replace(why=f"last, as the best one cannot be read: {damage}")
        return ChosenStep(best.step, why, commit.sha256)

    def _micro_step(self, batch: Batch, step: int) -> Losses:
        """One forward and backward pass; the last one of a step also updates the weights."""
        # The same for all micro batches of a step, each of which takes its samples' part.
        rng = seeded(self.inputs.recipe.seed, self.settings.name, step)
        # All draws are small and made by the host, which would have to wait for those of a GPU.
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with explain_out_of_memory(self.settings, batch):
            return self.trainer.micro_step(batch, generator, step=step)

    def _reduce(self, sums: Tensor, *flags: bool) -> tuple[StepTerms, list[bool]]:
        """Terms over all workers, and whether any of these raised each flag, by one all-reduce."""
        message = torch.cat([sums.flatten(), sums.new_tensor(flags)])
        dist.all_reduce(message)
        values: list[float] = message.tolist()
        split = sums.numel()
        pairs = zip(values[:split:2], values[1:split:2], strict=True)
        terms = dict(zip(self.trainer.terms, pairs, strict=True))
        return terms, [count > 0 for count in values[split:]]

    def _note(self, skipped: list[SkippedSample]) -> None:
        """Puts what the workers skipped on every worker's list; all stop when it is too long."""
        gathered: list[list[SkippedSample]] = [[] for _ in range(self.loader.world_size)]
        dist.all_gather_object(gathered, skipped)
        self.skipped.add(itertools.chain(*gathered), write=self.loader.rank == 0)

    def _check_loss(self, terms: StepTerms, step: int, keys: list[str]) -> None:
        """Stops every worker when loss or gradient is not finite, or the loss diverges, before it
        can reach a checkpoint; the keys of all workers' samples are saved first."""
        problem = self._problem(terms)
        if problem is None:
            return
        self.checkpoints.drain()
        gathered: list[list[str]] = [[] for _ in range(self.loader.world_size)]
        dist.all_gather_object(gathered, keys)
        path = self.inputs.folder.bad_step
        if self.loader.rank == 0:
            keys = [key for part in gathered for key in part]
            found = {"step": step, "problem": problem, "keys": keys}
            with best_effort(str(path)):
                path.unlink(missing_ok=True)  # of another step, if this one cannot be written
                storage.write_bytes(str(path), json.dumps(found, indent=2).encode())
        # After this, the file is there for all workers, or for none.
        kept, again = "", "Start again"
        if self.checkpoints.newest_step():
            kept, again = "The last checkpoint is kept. ", "Continue from it"
        listed, look = "", ""
        if path.is_file():
            listed = f"The samples of that step are listed in {path}. "
            look = ", after a look at these samples with 'flowmapsr dataset inspect'"
        raise FlowmapsrError(
            f"stage {self.settings.name!r}: {problem} at step {step}. {listed}{kept}{again} with "
            f"the same command and a lower stages.{self.settings.name}.learning_rate{look}"
        )

    def _problem(self, terms: StepTerms) -> str | None:
        if not all(math.isfinite(total) for total, _ in terms.values()):
            return "the loss is not finite"
        if not math.isfinite(self.trainer.gradient_norm):
            return "the gradient is not finite"
        error = self._guarded_error(terms)
        if error is None or not self.guard.diverged(error):
            return None
        return (
            f"the squared error of {error:.3g} is more than max_loss_growth = "
            f"{self.guard.max_growth:g} times the {self.guard.usual:.3g} that was usual before"
        )

    def _guarded_error(self, terms: StepTerms) -> float | None:
        guarded = [terms[name] for name in self.trainer.guarded]
        total, count = (sum(parts) for parts in zip(*guarded, strict=True))
        return total / count if count else None

    def _save(self, position: Position) -> None:
        state = TrainerState(
            step=position.step,
            images_seen=position.images_seen,
            consumed=dict(position.consumed),
            errors=tuple(self.guard.errors),
            best=self.best.found,
            origin=self.origin,
            world_size=self.loader.world_size,
            zero_stage=self.settings.zero_stage,
        )
        problem = self.checkpoints.save(self.trainer, state)
        if problem:
            self.reporter.checkpoint_failed(problem)

    def _report(self, meter: Meter, position: Position, last: bool) -> None:
        step = position.step
        if step % LOG_EVERY == 0 or last:
            self.reporter.metrics(
                step,
                meter.metrics(),
                self.trainer.metrics(step - 1),
                self.flop_meter.metrics(),
                self.hosts.gather(),
                self.checkpoints.metrics(),
                {
                    "perf/memory_gb": memory_gb(self.inputs.device),
                    "data/images_seen": float(position.images_seen),
                    "data/skipped_samples": float(self.skipped.samples),
                    **self._images_of_sources(position),
                },
            )
        if meter.progress_is_due(PROGRESS_SECONDS) or last:
            self.reporter.progress(self._progress(meter, step), last=last)

    def _images_of_sources(self, position: Position) -> dict[str, float]:
        """Of a mixture, by the index in `sources`."""
        sources = range(len(self.inputs.recipe.sources))
        return {f"data/images_seen_source_{i}": float(position.images_of(i)) for i in sources}

    def _validate(self, position: Position, meter: Meter) -> bool:
        """Validates, and reports it; returns whether a watched metric has a new best value."""
        step = position.step
        self.watchdog.alive(f"step {step}", next_is_long=True)
        with self.reporter.doing("validating"), meter.validation():
            all_metrics = self._all_metrics_are_due(position)
            found = self.validate(all_metrics=all_metrics)
            self.reporter.metrics(step, found.metrics)
            if found.measures_seconds:
                seconds = {"perf/validation_metrics_seconds": found.measures_seconds}
                self.reporter.metrics(step, seconds)
            self.reporter.pictures(step, found.pictures)
            self.reporter.validated(step, found.headline, table=over_time_table(found.over_time))
        self.watchdog.alive(f"the validation of step {step}")
        if all_metrics:
            self.best.check(found.metrics)
        if step == 0:
            self.guard.begin(
                [terms[name][0] / terms[name][1] for terms in found.losses if terms[name][1]]
                for name in self.trainer.guarded
            )
        return step > 0 and self.best.add(step, found.metrics)

    def _all_metrics_are_due(self, position: Position) -> bool:
        validations = position.step // self.settings.validate_every_steps
        every = self.inputs.recipe.validation.every
        return validations % every == 0 or self.finished(position)

    def _progress(self, meter: Meter, step: int) -> StageProgress:
        newest = self.checkpoints.newest
        recent = meter.recent()
        return StageProgress(
            stage=self.settings.name,
            step=step,
            steps=self.settings.steps,
            images_per_second=recent.images_per_second,
            headline=self.trainer.headline,
            headline_value=recent.headline,
            updated=time.time(),
            checkpoint_step=newest.state.step if newest else 0,
            checkpoint_time=newest.saved if newest else 0.0,
            checkpoint_gb=newest.bytes / 1e9 if newest else 0.0,
            worker_hours=self.reporter.worker_hours,
            problem=self.checkpoints.problem,
            data_wait_fraction=recent.data_wait_fraction,
            memory_gb=memory_gb(self.inputs.device),
        )
