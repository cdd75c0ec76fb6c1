"""One stage from recipe to model: builds the parts, resumes, runs the loop and writes what the
stage made.

Called on every worker inside an initialised launcher (Ray Train, torchrun or deepspeed); knows none
of them.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from datagen.dataset.manifest import Dataset, open_dataset
from datagen.io import storage
from datagen.samples.codecs import load_codec
from training.checkpoints.records import Origin
from training.checkpoints.store import Checkpoints
from training.data.bucket_mix import bucket_shares, bucket_sizes
from training.data.loader import Batch, LatentLoader, preview_batch
from training.data.sample_decoder import BatchFields
from training.data.schedule import Position
from training.data.shard_cache import recipe_cache
from training.data.shard_store import ShardStore
from training.data.skipped import SkippedList
from training.distributed import gather_workers, worker_device
from training.engine.engine import start_distributed
from training.flowmap.lora import check_targets
from training.flowmap.network import FlowMapNet
from training.loop import Loop
from training.monitoring.loss_guard import LossGuard
from training.monitoring.meter import reset_memory_peak
from training.monitoring.mfu import Effort
from training.monitoring.out_of_memory import memory_explained
from training.monitoring.peaks import Peak, device_peak
from training.monitoring.startup_timer import StartClock
from training.monitoring.watchdog import Watchdog
from training.run_dir.paths import StageFolder
from training.run_dir.records import StageRecord
from training.run_dir.starts import Attempt, how_ended, last_line
from training.settings.recipe import TrainingRecipe
from training.systems import Builder
from training.tracking.events import Status
from training.tracking.pictures import Pictures
from training.tracking.stage_run import StageReport, sampled_machine
from training.tracking.tracker import Tracker
from training.weights.initialize import DOWNLOAD, fetch_inputs, initialise
from training.weights.model_folder import LoraRecord, ModelConfig, save_model

log = logging.getLogger(__name__)

IMAGES_IN_GRID = 4


def run_stage(
    recipe: TrainingRecipe,
    name: str,
    *,
    stop_requested: Callable[[], bool],
    clock: StartClock,
    stalled: Callable[[str], None] | None = None,
) -> StageRecord | None:
    """Trains one stage to its end, going on from the last checkpoint.

    Args:
        clock: of the stage's start, so far.
        stalled: hears why, before this process is ended because nothing moves any more.

    Returns:
        The stage's record, or None when a stop was requested first (a checkpoint is saved).
    """
    folder = StageFolder(Path(recipe.output), name)
    if folder.record() is None:
        _train(recipe, folder, stop_requested, clock, stalled)
        gc.collect()  # networks, engines and hooks refer to each other in circles
    return folder.record()


def _train(
    recipe: TrainingRecipe,
    folder: StageFolder,
    stop_requested: Callable[[], bool],
    clock: StartClock,
    stalled: Callable[[str], None] | None,
) -> None:
    rank, world_size = launched_as()
    with Watchdog(
        folder.home, rank=rank, world_size=world_size, seconds=recipe.watchdog_seconds
    ) as watchdog:
        if stalled is not None:
            watchdog.before_end(lambda: stalled(how_ended(folder.run, folder.home)))
        worker = StageWorker(recipe, folder, watchdog, clock)
        try:
            worker.train(stop_requested)
        finally:
            worker.trainer.close()


class StageWorker:
    """The parts of one stage on one worker."""

    def __init__(
        self, recipe: TrainingRecipe, folder: StageFolder, watchdog: Watchdog, clock: StartClock
    ) -> None:
        self.recipe = recipe
        self.watchdog = watchdog
        self.clock = clock
        self.folder = folder
        self.settings = recipe.stage(folder.name)
        self.manifest, self.dataset = open_dataset(recipe.manifest)
        self.dataset_recipe = self.manifest.dataset_recipe(self.dataset)
        self.rank, self.world_size = launched_as()
        self.device = worker_device()
        reset_memory_peak(self.device)
        self.shards = ShardStore(self.dataset, cache=recipe_cache(recipe))
        self.shown = self._shown_batch()
        self.codec = load_codec(self.dataset_recipe.codec, device=str(self.device))
        clock.mark("data")
        start_distributed(self.device)
        self.workers = gather_workers(self.device)
        clock.mark("connection")
        self.attempt = Attempt(folder.run, folder.name, self.workers) if self.rank == 0 else None
        if self.rank == 0:
            fetch_inputs(recipe, folder)
        dist.barrier()
        torch.manual_seed(recipe.seed)
        self.initial = initialise(recipe, folder, latent_channels=self.manifest.codec.channels)
        self.net = self.initial.net
        check_lora(recipe, self.net)
        guidance = self.settings.objective.guidance
        self.net.strength = 1.0 if guidance is None else guidance.mean_strength
        clock.mark("network")
        builder = Builder(self.settings, self.codec, self.device, self.world_size)
        with memory_explained(self.settings):
            self.trainer = builder.trainer(self.net)
        clock.mark("engine")
        self.peak = self._peak()

    def train(self, stop_requested: Callable[[], bool]) -> None:
        """Resumes, trains and, on rank 0, writes model and record; all workers return together."""
        tracker = self._open_report() if self.rank == 0 else None
        loop = self._loop(tracker, stop_requested)
        status: Status = "FAILED"
        reason: str | None = None
        try:
            with (
                self._attempted(),
                sampled_machine(self.folder, self.workers, rank=self.rank, tracker=tracker),
                self.watchdog.speaks_first(),
            ):
                end = loop.run()
                status = "FINISHED" if loop.finished(end) else "KILLED"
                if status == "FINISHED":
                    with self.trainer.averaged(), self.trainer.whole():
                        if self.rank == 0:
                            self._write_results(end)
        except BaseException as error:
            reason = last_line(error)
            raise
        finally:
            if tracker is not None:
                tracker.close(status, reason=reason)
        dist.barrier()

    def _attempted(self) -> AbstractContextManager[None]:
        return nullcontext() if self.attempt is None else self.attempt.noted()

    def _open_report(self) -> Tracker:
        report = StageReport(self.recipe, self.folder, self.workers)
        self.watchdog.before_end(report.stalled)
        report.describe(Dataset(self.manifest, self.dataset), self.initial, self.peak)
        return report.tracker

    def _loop(self, tracker: Tracker | None, stop_requested: Callable[[], bool]) -> Loop:
        settings = self.settings
        return Loop(
            settings=settings,
            seed=self.recipe.seed,
            origin=Origin(
                stage=settings.name,
                recipe_digest=self.recipe.digest(fixed=True),
                dataset_digest=self.manifest.digest,
            ),
            trainer=self.trainer,
            loader=LatentLoader(
                self.shards,
                self.manifest,
                bucket_shares(settings, self.manifest),
                fields=BatchFields(neg=settings.needs_negatives, pixels=settings.needs_pixels),
                rank=self.rank,
                world_size=self.world_size,
                seed=self.recipe.seed,
                shuffle_window_shards=self.recipe.shuffle_window_shards,
                threads=self.recipe.loader_threads,
                pin=self.device.type == "cuda",
            ),
            checkpoints=Checkpoints(
                self._checkpoints_uri(),
                keep=settings.keep_checkpoints,
                keep_every_steps=settings.keep_every_steps,
            ),
            device=self.device,
            home=self.folder.home,
            image_every_steps=self.recipe.image_every_steps,
            pictures=self._pictures(),
            tracker=tracker,
            stop_requested=stop_requested,
            skipped=SkippedList(
                self.folder.home,
                training_samples=sum(bucket_sizes(self.manifest, "train").values()),
                limit=self.recipe.max_bad_sample_fraction,
            ),
            effort=Effort(self.device, peak=self.peak, compiled=settings.compile != "none"),
            watchdog=self.watchdog,
            guard=LossGuard(settings.max_loss_growth),
            attempt=self.attempt,
            clock=self.clock,
        )

    def _checkpoints_uri(self) -> str:
        if self.recipe.checkpoints is None:
            return str(self.folder.home / "checkpoints")
        return storage.join(self.recipe.checkpoints, self.folder.name)

    def _peak(self) -> Peak | None:
        """Of this worker's device, where it is reported; a warning where it is not known."""
        if self.rank > 0:
            return None
        peak = device_peak(self.device, self.settings.precision, self.recipe.peak_tflops)
        if peak is None:
            log.warning(
                "the peak of this GPU is not known, so perf/mfu is left out: set peak_tflops to "
                "what its data sheet gives for %s, in 10^12 per second",
                self.settings.precision,
            )
        return peak

    def _shown_batch(self) -> Batch | None:
        """The samples of the pictures, on workers that draw: the first one, and under ZeRO-3 the
        others, who must help to evaluate the network."""
        if self.rank > 0 and self.settings.zero_stage < 3:
            return None
        batch = preview_batch(self.shards, self.manifest, IMAGES_IN_GRID).to(self.device)
        check_dataset(self.recipe, batch)
        return batch

    def _pictures(self) -> Pictures | None:
        if self.shown is None:
            return None
        return Pictures(
            folder=self.folder.home / "images",
            model=self.trainer.model,
            batch=self.shown,
            codec=self.codec,
            keeps=self.rank == 0,
        )

    def _write_results(self, end: Position) -> None:
        """Model folder first, `done.json` last: its presence says that everything else is there."""
        settings, folder = self.settings, self.folder
        config = ModelConfig(
            model=self.net.settings,
            latent_channels=self.net.latent_channels,
            codec=self.dataset_recipe.codec,
            codec_fingerprint=self.codec.fingerprint,
            guidance_strength=self.net.strength,
            prompt_embeddings=self.initial.prompts.made_by,
            degradation=self.dataset_recipe.degradation,
            lora=self._lora_record(),
            stage=settings.name,
            recipe_digest=self.recipe.digest(),
            dataset_digest=self.manifest.digest,
        )
        save_model(folder.model, self.net, config, prompts=self.initial.prompts)
        record = StageRecord(
            stage=settings.name,
            steps=end.step,
            images_seen=end.images_seen,
            recipe_digest=config.recipe_digest,
            dataset_digest=config.dataset_digest,
            model=str(folder.model.relative_to(folder.run)),
        )
        storage.write_bytes(str(folder.done), record.model_dump_json(indent=2).encode())
        shutil.rmtree(folder.home / DOWNLOAD, ignore_errors=True)

    def _lora_record(self) -> LoraRecord | None:
        if self.settings.adversarial is None:
            return None
        lora = self.settings.adversarial.lora
        return LoraRecord(rank=lora.rank, target_modules=lora.target_modules, scale=lora.scale)


def launched_as() -> tuple[int, int]:
    """Rank and number of the launcher's workers."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def check_dataset(recipe: TrainingRecipe, batch: Batch) -> None:
    """Refuses a dataset that lacks what any stage of the recipe needs, before the first trains."""
    for stage in recipe.stages:
        if stage.needs_negatives:
            batch.require_neg()
        if stage.needs_pixels:
            batch.require_pixels()


def check_lora(recipe: TrainingRecipe, net: FlowMapNet) -> None:
    """Refuses LoRA names that match no layer, before the first stage trains."""
    for stage in recipe.stages:
        if stage.adversarial is not None:
            check_targets(net, stage.adversarial.lora.target_modules)
