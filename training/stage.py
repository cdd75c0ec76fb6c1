"""One stage from recipe to model: builds the parts, runs the loop and writes what the stage made.

Called on every worker of a launcher (Ray Train, torchrun or deepspeed).
"""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

from datagen.dataset.manifest import Dataset
from datagen.io import storage
from datagen.samples.codecs import load_codec
from training.checkpoints.records import CheckpointOrigin
from training.checkpoints.store import Checkpoints
from training.data.batch_memory import BatchMemory
from training.data.bucket_mix import bucket_shares, bucket_sizes
from training.data.fresh_degradation import FreshDegradation
from training.data.held_out import held_out_groups, held_out_reader
from training.data.loader import BatchLoader, BatchReader, Source
from training.data.planned import Position
from training.data.schedule import Schedule
from training.data.shard_cache import recipe_cache
from training.data.shard_store import ShardStore
from training.data.skipped import SkippedList
from training.distributed import gather_workers, launched_as, worker_device
from training.engine.engine import start_distributed
from training.loop import Loop
from training.monitoring.loss_guard import LossGuard
from training.monitoring.meter import reset_memory_peak
from training.monitoring.mfu import FlopMeter, Peak, gpu_peak
from training.monitoring.startup_timer import startup
from training.monitoring.system_metrics import HostMetrics
from training.monitoring.watchdog import Watchdog, connection_timeout
from training.run_dir.datasets import (
    open_stage_datasets,
    recorded_datasets,
    replacement_told,
    warn_of_newer_data,
)
from training.run_dir.further import checkpoints_of
from training.run_dir.paths import StagePaths
from training.run_dir.records import ChosenStep, EndedBy, StageRecord, WorkerGroup
from training.run_dir.starts import end_reason
from training.settings.held_out import RAW, is_headline
from training.settings.recipe import TrainingRecipe
from training.system_protocol import StageInputs, System, SystemOf, SystemStage
from training.systems import system_of as default_system_of
from training.tracking.reporter import Reporter, StageReporter
from training.validation.best import BestSoFar
from training.validation.figures import draw_figures
from training.validation.measures import find_measures
from training.validation.validator import Validation, Validator

log = logging.getLogger(__name__)


def run_stage(
    recipe: TrainingRecipe,
    name: str,
    *,
    stop_requested: Callable[[], bool],
    stalled: Callable[[str], None] | None = None,
    system_of: SystemOf = default_system_of,
) -> StageRecord | None:
    """Trains one stage to its end, from its last checkpoint, with the arguments of `run_stages`.

    Returns:
        The stage's record, or None when a stop was requested first (a checkpoint is saved).
    """
    folder = StagePaths(Path(recipe.output), name)
    if folder.finished_record() is None:
        _train(recipe, folder, stop_requested, stalled, system_of(recipe.model.kind))
        # Networks, engines and hooks refer to each other in circles: without this they would be in
        # memory while the next stage is built. Nothing here may still refer to the stage.
        gc.collect()
    return folder.finished_record()


def _train(
    recipe: TrainingRecipe,
    folder: StagePaths,
    stop_requested: Callable[[], bool],
    stalled: Callable[[str], None] | None,
    system: System,
) -> None:
    rank, world_size = launched_as()
    seconds = recipe.watchdog_seconds
    with Watchdog(folder.stacks, rank=rank, world_size=world_size, seconds=seconds) as watchdog:
        if stalled is not None:
            watchdog.before_end(lambda: stalled(end_reason(folder)))
        with build_stage(recipe, folder, system, watchdog) as stage:
            stage.train(stop_requested)


@contextmanager
def build_stage(
    recipe: TrainingRecipe, folder: StagePaths, system: System, watchdog: Watchdog
) -> Iterator[Stage]:
    """The parts of a stage, closed when the block ends; every worker must enter it together.

    Raises:
        FlowmapsrError: a dataset, weights or settings that do not fit each other.
    """
    rank, world_size = launched_as()
    # Else each launcher has its own number, and sums in another order differ in their last bits.
    torch.set_num_threads(recipe.cpus_per_worker)
    datasets = recorded_datasets(recipe)
    opened = open_stage_datasets(recipe, folder.name, datasets)
    device = worker_device()
    reset_memory_peak(device)
    cache = recipe_cache(recipe)
    stores = tuple(ShardStore(dataset.root, cache=cache) for dataset in opened)
    reader = held_out_reader(
        stores,
        opened,
        recipe.validation_samples,
        lq_pixels=not recipe.stage(folder.name).batch_fields.latents,
    )
    groups = held_out_groups([one.manifest for one in opened], recipe.validation_samples)
    if rank == 0:
        warn_of_newer_data(recipe, datasets)
        if reader.schedule.split == "train":
            _say_that_nothing_is_held_out(" and ".join(one.root for one in opened))
    dataset_recipe = opened[0].manifest.dataset_recipe(opened[0].root)
    inputs = StageInputs(
        recipe=recipe,
        folder=folder,
        datasets=opened,
        dataset_recipe=dataset_recipe,
        codec=load_codec(dataset_recipe.codec, device=str(device)),
        device=device,
        world_size=world_size,
    )
    startup.mark("data")
    start_distributed(device, timeout=connection_timeout(recipe.watchdog_seconds))
    workers = gather_workers(device)
    connected = time.monotonic()
    startup.mark("connection")
    if rank == 0:
        system.fetch_inputs(inputs)
    dist.barrier()
    torch.manual_seed(recipe.seed)
    built = system.build(inputs)
    startup.mark("engine")
    with closing(built.trainer):
        validator = Validator(
            reader,
            groups,
            codec=inputs.codec,
            device=device,
            measures=find_measures(recipe.validation),
        )
        startup.mark("held out")
        yield Stage(inputs, system, built, stores, validator, workers, connected, watchdog)


@cache
def _say_that_nothing_is_held_out(dataset: str) -> None:
    """Once for all stages."""
    log.warning(
        "%s holds no samples out, so quality is not measured while training, and the pictures show "
        "training samples; build the dataset with validation_fraction=0.02 to measure it",
        dataset,
    )


@dataclass(frozen=True)
class Stage:
    """A stage on one worker, ready to run."""

    inputs: StageInputs
    system: System
    built: SystemStage
    stores: tuple[ShardStore, ...]
    validator: Validator
    workers: WorkerGroup
    connected: float
    """When the workers were connected, by `time.monotonic`."""
    watchdog: Watchdog

    @property
    def folder(self) -> StagePaths:
        return self.inputs.folder

    @property
    def rank(self) -> int:
        return dist.get_rank()

    def train(self, stop_requested: Callable[[], bool]) -> None:
        """Resumes, trains and, on rank 0, writes model and record; all workers return together."""
        peak = self._peak()
        reporter = self._reporter(peak)
        loop = self._loop(reporter, peak, stop_requested)
        told = replacement_told(self.inputs.recipe, self.folder.name)
        with reporter.end_recorded(), self.watchdog.hold_errors_at_end(), told:
            end = loop.run()
            if loop.finished(end):
                if self.rank == 0 and self.validator.newest is not None:
                    reporter.pictures(end.step, draw_figures(self.validator.newest))
                why = loop.why_finished(end)
                reporter.finished(why)
                reporter.dealt([end.images_of(i) for i in range(len(self.inputs.datasets))])
                chosen = loop.choose_model(end)
                with self._whole_model():
                    if self.rank == 0:
                        self._write_results(end, why, loop.ended_by, chosen, reporter)
        dist.barrier()

    @contextmanager
    def _whole_model(self) -> Iterator[None]:
        """In the block, the networks have the weights that the model would have now, whole on every
        worker; all workers must enter it."""
        engine = self.built.trainer.engine
        with engine.averaged(), engine.gathered_parameters():
            yield

    def validate(self, *, all_metrics: bool) -> Validation:
        """Measures and shows the model that the stage would end with now, and beside an average
        the weights themselves; all workers call it."""
        raw = {} if self.inputs.settings.ema_decay is None else self._of_raw_weights()
        with self._whole_model():
            found = self.validator.validate(self.built, all_metrics=all_metrics)
            pictures = {**found.pictures, **self.built.pictures()}
        return replace(found, metrics={**found.metrics, **raw}, pictures=pictures)

    def _of_raw_weights(self) -> dict[str, float]:
        """The most important metrics."""
        with self.built.trainer.engine.gathered_parameters():
            found = self.validator.validate(self.built, all_metrics=False)
        return {f"{name}{RAW}": value for name, value in found.metrics.items() if is_headline(name)}

    def _reporter(self, peak: Peak | None) -> Reporter:
        if self.rank > 0:
            return Reporter()
        recipe = self.inputs.recipe
        reporter = StageReporter(recipe, self.folder, self.workers, since=self.connected)
        self.watchdog.before_end(reporter.stalled)
        loaded = self.built.load_report
        if loaded is not None:
            log.info("stage %s: %s", self.folder.name, loaded.summary())
        reporter.describe(
            self.inputs.datasets,
            initialization=None if loaded is None else loaded.table(),
            pictures=self.system.pictures_note,
            tags={
                "initialized_from": recipe.initial_weights_of(self.folder.name) or "random weights",
                **self.built.tags,
                **({} if peak is None else peak.tags()),
            },
        )
        return reporter

    def _loop(
        self, reporter: Reporter, peak: Peak | None, stop_requested: Callable[[], bool]
    ) -> Loop:
        inputs, recipe = self.inputs, self.inputs.recipe
        settings, manifests = inputs.settings, inputs.manifests
        schedule = Schedule(
            manifests,
            bucket_shares(settings, manifests, recipe.weights),
            seed=recipe.seed,
            shuffle_window_shards=recipe.shuffle_window_shards,
            split="train",
        )
        reader = BatchReader(
            [self._source(*pair) for pair in zip(self.stores, inputs.datasets, strict=True)],
            schedule,
            manifests[0].codec if settings.batch_fields.latents else None,
            settings.batch_fields,
            memory=BatchMemory(pin=inputs.device.type == "cuda"),
        )
        return Loop(
            inputs=inputs,
            origin=CheckpointOrigin(
                stage=settings.name,
                recipe_digest=recipe.digest(fixed=True),
                dataset_digest=inputs.dataset_digest,
            ),
            trainer=self.built.trainer,
            prepare=self.built.prepared,
            loader=BatchLoader(
                reader, rank=self.rank, world_size=inputs.world_size, threads=recipe.loader_threads
            ),
            checkpoints=Checkpoints(
                checkpoints_of(recipe, self.folder),
                keep=settings.keep_checkpoints,
                keep_every_steps=settings.keep_every_steps,
                changed=reporter.checkpoints_changed,
            ),
            validate=self.validate,
            best=BestSoFar(settings),
            reporter=reporter,
            stop_requested=stop_requested,
            skipped=SkippedList(
                self.folder.skipped,
                training_samples=sum(
                    sum(bucket_sizes(manifest, "train").values()) for manifest in manifests
                ),
                limit=recipe.max_bad_sample_fraction,
            ),
            flop_meter=FlopMeter(
                peak=peak,
                compiled=settings.compile != "none",
                checkpointed=settings.gradient_checkpointing,
                enabled=self.rank == 0,
            ),
            hosts=HostMetrics(self.folder.run, self.workers, rank=self.rank),
            watchdog=self.watchdog,
            guard=LossGuard(settings.max_loss_growth),
        )

    def _source(self, store: ShardStore, dataset: Dataset) -> Source:
        recipe, fresh = dataset.manifest.dataset_recipe(dataset.root), None
        if self.inputs.settings.batch_fields.lq_pixels == "fresh":
            fresh = FreshDegradation(recipe.degradation, self.inputs.recipe.seed)
        return Source(store, recipe.lq_pixels, fresh)

    def _peak(self) -> Peak | None:
        """Peak of rank 0's GPU, with a warning where it is unknown; None on other ranks and CPU."""
        device = self.inputs.device
        if self.rank > 0 or device.type != "cuda":
            return None
        peak = gpu_peak(torch.cuda.get_device_name(device), self.inputs.settings.precision)
        if peak is None:
            log.warning("the peak of this GPU is unknown: its utilization (MFU) is not reported")
        return peak

    def _write_results(
        self,
        end: Position,
        why: str,
        ended_by: EndedBy,
        chosen: ChosenStep,
        reporter: Reporter,
    ) -> None:
        """Model folder first, `done.json` last: its presence says that everything else is there."""
        inputs, folder = self.inputs, self.folder
        self.built.save(folder.model, chosen)
        reporter.model_written(chosen)
        record = StageRecord(
            stage=folder.name,
            steps=end.step,
            images_seen=end.images_seen,
            ended=why,
            ended_by=ended_by,
            model_step=chosen.step,
            checkpoint=chosen.checkpoint,
            recipe_digest=inputs.recipe.digest(),
            dataset_digest=inputs.dataset_digest,
            model=str(folder.model.relative_to(folder.run)),
        )
        storage.write_bytes(str(folder.done), record.model_dump_json(indent=2).encode())
        shutil.rmtree(folder.inputs, ignore_errors=True)
