"""The training loop: batches to optimiser steps, checkpoints and metrics. Knows no method and no
launcher."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io import storage
from training.checkpoints.records import Origin, TrainerState
from training.checkpoints.store import Checkpoints
from training.data.loader import Batch, LatentLoader
from training.data.schedule import Position, seeded
from training.data.skipped import Skipped, SkippedList
from training.flowmap.objective import Losses
from training.flowmap.time_maps import empty_map
from training.monitoring.loss_guard import LossGuard
from training.monitoring.meter import Meter, memory_gb
from training.monitoring.mfu import Effort
from training.monitoring.out_of_memory import memory_explained
from training.monitoring.startup_timer import StartClock
from training.monitoring.watchdog import Watchdog
from training.run_dir.best_effort import secondary
from training.run_dir.records import StageProgress
from training.run_dir.starts import Attempt
from training.settings.stage import StageSettings
from training.tracking.events import Tags
from training.tracking.pictures import Pictures
from training.tracking.tracker import Tracker
from training.trainer import ERROR_METRICS, Trainer

LOG_EVERY = 10
PROGRESS_SECONDS = 2.0
BAD_STEP = "bad_step.json"
FIRST_STEP = "first_step"
"""The last phase of a start."""


@dataclass(frozen=True)
class Loop:
    """One worker's view of a stage, ready to run."""

    settings: StageSettings
    seed: int
    origin: Origin
    trainer: Trainer
    loader: LatentLoader
    checkpoints: Checkpoints
    device: torch.device
    home: Path
    """The stage's folder."""
    image_every_steps: int
    pictures: Pictures | None
    """None on workers that need not draw."""
    tracker: Tracker | None
    """None on all workers but the first."""
    stop_requested: Callable[[], bool]
    skipped: SkippedList
    effort: Effort
    watchdog: Watchdog
    guard: LossGuard
    attempt: Attempt | None
    """None on all workers but the first."""
    clock: StartClock

    def run(self) -> Position:
        """Trains from the last checkpoint to the end of the stage, or to where a stop was
        requested.

        Every worker runs the same steps. A checkpoint is there whenever this returns.

        Raises:
            FlowmapsrError: loss or gradient is not finite, the loss explodes, or too many samples
                cannot be used, and the last checkpoint stays as it is; or checkpoints cannot be
                read, or the last one not be written.
        """
        self.clock.mark("tracking")
        state = self.checkpoints.resume(self.trainer, self.origin)
        self.clock.mark("checkpoint")
        if state is not None:
            self.guard.remember(state.errors)
        try:
            return self._train(Position() if state is None else state.position)
        finally:
            self.checkpoints.close()

    def _train(self, position: Position) -> Position:
        batches = self.loader.batches(position)
        names = self.trainer.metrics
        over_times = empty_map(self.device)
        if self.attempt is not None and self.tracker is not None:
            passed_over = self.checkpoints.passed_over
            for event in self.attempt.begin(position.step, passed_over=passed_over):
                self.tracker.write(event)
        if position.step == 0:
            self._draw(0, over_times)  # to compare with, and where MLflow's slider stands at first
            self.clock.mark("pictures")
        meter = Meter(names)
        stopping = False
        while not stopping and not self.finished(position):
            sums = torch.zeros(len(names), 2, dtype=torch.float64, device=self.device)
            keys: list[str] = []
            skipped: list[Skipped] = []
            step, seen = position.step, position.images_seen
            while position.step == step:
                batch = meter.waited(lambda: next(batches)).to(self.device)
                skipped += self.skipped.new_ones(batch.skipped)
                with self.effort.micro_step(self.trainer.work(step), batch):
                    losses = self._micro_step(batch, step)
                self.watchdog.alive(f"step {step}, micro step {batch.micro.index}")
                if batch.micro.weight:
                    keys += batch.keys
                    sums += losses.sums
                    over_times += losses.over_times
                if batch.micro.is_last:
                    position = batch.position
            stopping, skipping = self._share(sums, self.stop_requested(), bool(skipped))
            self._check_loss(sums, step, keys)
            if skipping:
                self._note(skipped)
            self.effort.end_step()
            self.trainer.end_step(sums, step=step)
            if FIRST_STEP not in self.clock.seconds:
                self._report_start(position.step)
            meter.add(sums, images=position.images_seen - seen)
            last = stopping or self.finished(position)
            if last or position.step % self.settings.checkpoint_every_steps == 0:
                # The one before may still be on its way to a slow or busy storage.
                self.watchdog.alive(f"step {step}, its checkpoint", next_is_long=True)
                self._save(position)
                self.watchdog.alive(f"the checkpoint of step {position.step}", next_is_long=last)
            if last:
                self.checkpoints.finish()
                self.watchdog.alive(f"the last checkpoint, of step {position.step}")
            self._report(meter, position.step, last)
            if position.step % self.image_every_steps == 0 or self.finished(position):
                self._draw(position.step, over_times)
                self.watchdog.alive(f"the pictures of step {position.step}")
        batches.close()
        return position

    def finished(self, position: Position) -> bool:
        """Whether the stage is done at `position`, by its steps or by convergence."""
        return position.step >= self.settings.steps or self.trainer.converged

    def _micro_step(self, batch: Batch, step: int) -> Losses:
        # Draws depend on the place in the global batch, not on how many workers share it.
        place = batch.micro.index * self.loader.world_size + self.loader.rank
        seed = int(seeded(self.seed, self.settings.name, step, place).integers(2**62))
        # All draws are small, and the host's: it would have to wait for those of a GPU.
        generator = torch.Generator().manual_seed(seed)
        with memory_explained(self.settings, batch):
            return self.trainer.micro_step(batch, generator, step=step)

    def _share(self, sums: Tensor, *flags: bool) -> list[bool]:
        """Adds the sums of all workers in place; whether any of them raised each flag."""
        raised = sums.new_tensor(flags)
        message = torch.cat([sums.flatten(), raised])
        dist.all_reduce(message)
        sums.copy_(message[: sums.numel()].view_as(sums))
        counts: list[float] = message[sums.numel() :].tolist()
        return [count > 0 for count in counts]

    def _note(self, skipped: list[Skipped]) -> None:
        """Puts what the workers skipped on every worker's list; all stop when it is too long."""
        gathered: list[list[Skipped]] = [[] for _ in range(self.loader.world_size)]
        dist.all_gather_object(gathered, skipped)
        self.skipped.add(itertools.chain(*gathered), write=self.loader.rank == 0)

    def _check_loss(self, sums: Tensor, step: int, keys: list[str]) -> None:
        """Stops every worker when loss or gradient is not finite, or the loss explodes, before it
        can reach a checkpoint; the keys of all workers' samples are saved first."""
        problem = self._problem(sums)
        if problem is None:
            return
        self.checkpoints.drain()
        gathered: list[list[str]] = [[] for _ in range(self.loader.world_size)]
        dist.all_gather_object(gathered, keys)
        path = self.home / BAD_STEP
        if self.loader.rank == 0:
            keys = [key for part in gathered for key in part]
            found = {"step": step, "problem": problem, "keys": keys}
            with secondary(str(path)):
                storage.write_bytes(str(path), json.dumps(found, indent=2).encode())
        dist.barrier()
        raise FlowmapsrError(
            f"stage {self.settings.name!r}: {problem} at step {step}. The samples of that step "
            f"are listed in {path}, and the last checkpoint is kept. Go on from it with the same "
            f"command and a lower stages.{self.settings.name}.learning_rate, after a look at these "
            "samples with 'flowmapsr dataset inspect'"
        )

    def _problem(self, sums: Tensor) -> str | None:
        if not sums.isfinite().all():
            return "the loss is not finite"
        if not math.isfinite(self.trainer.gradient_norm):
            return "the gradient is not finite"
        rows = [self.trainer.metrics.index(name) for name in ERROR_METRICS]
        total, count = sums[rows].sum(dim=0).tolist()
        if count == 0 or not self.guard.explodes(total / count):
            return None
        return (
            f"the squared error of {total / count:.3g} is more than max_loss_growth = "
            f"{self.guard.max_growth:g} times its running median of {self.guard.median:.3g}"
        )

    def _save(self, position: Position) -> None:
        problem = self.checkpoints.save(self.trainer, self._state(position))
        if problem and self.tracker is not None:
            self.tracker.write(Tags(values={"last_failed_checkpoint": problem}))

    def _state(self, position: Position) -> TrainerState:
        return TrainerState(
            step=position.step,
            images_seen=position.images_seen,
            consumed=dict(position.consumed),
            errors=self.guard.errors,
            origin=self.origin,
            world_size=self.loader.world_size,
            zero_stage=self.settings.zero_stage,
        )

    def _report_start(self, step: int) -> None:
        self.clock.mark(FIRST_STEP)
        if self.tracker is not None:
            self.tracker.metrics(step, self.clock.metrics())

    def _report(self, meter: Meter, step: int, last: bool) -> None:
        if self.tracker is None:
            return
        if step % LOG_EVERY == 0 or last:
            metrics = meter.metrics() | self.trainer.report(step - 1) | self.effort.metrics()
            metrics["perf/memory_gb"] = memory_gb(self.device)
            metrics["data/skipped_samples"] = float(self.skipped.samples)
            metrics |= self.checkpoints.metrics()
            if self.attempt is not None:
                metrics |= self.attempt.metrics()
            self.tracker.metrics(step, metrics)
        if last or meter.seconds_since_progress() > PROGRESS_SECONDS:
            self._write_progress(meter, step)

    def _draw(self, step: int, over_times: Tensor) -> None:
        """Draws with what all workers have seen since the last pictures, and forgets it."""
        dist.all_reduce(over_times)
        with self.trainer.averaged():
            drawn = [] if self.pictures is None else self.pictures.draw(step, over_times)
        for picture in drawn:
            if self.tracker is not None:
                self.tracker.write(picture)
        over_times.zero_()

    def _write_progress(self, meter: Meter, step: int) -> None:
        newest = self.checkpoints.newest
        images_per_second, loss = meter.speed_and_loss()
        progress = StageProgress(
            stage=self.settings.name,
            step=step,
            steps=self.settings.steps,
            images_per_second=images_per_second,
            loss=loss,
            updated=time.time(),
            checkpoint_step=newest.state.step if newest else 0,
            checkpoint_time=newest.saved if newest else 0.0,
            worker_hours=0.0 if self.attempt is None else self.attempt.worker_hours,
            problem=self.checkpoints.problem,
        )
        path = self.home / "progress.json"
        with secondary(str(path)):
            storage.write_bytes(str(path), progress.model_dump_json().encode())
        meter.progress_written()
