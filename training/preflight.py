"""A training recipe and its dataset to a go or a clear error, before any stage is trained.

Catches what the recipe alone cannot show and what would otherwise stop a late stage. Trains
nothing, fetches nothing and knows no torch, so that a command answers at once; what takes a network
to check, the workers check before they train (`training/stage.py`).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from datagen.dataset.manifest import Dataset, Manifest
from datagen.errors import FlowmapsrError
from datagen.io.weight_files import tensor_entries
from datagen.records import is_folder, read_record
from datagen.samples.buckets import Bucket
from datagen.settings import DatasetRecipe
from training.data.bucket_mix import BucketShare, bucket_shares, bucket_sizes
from training.data.mixture import check_given, check_mixture
from training.data.shard_cache import check_cache
from training.run_dir.datasets import (
    RunDatasets,
    open_stage_datasets,
    plan_datasets,
    warn_of_newer_data,
)
from training.run_dir.paths import RunPaths, stage_paths
from training.run_dir.recipe_guard import check_recipe, stages_going_on
from training.settings.adversarial import DiscriminatorSettings
from training.settings.batch_fields import BatchFields
from training.settings.initial_weights import is_local_path
from training.settings.model import TextEncoderPrompts
from training.settings.objective import Lpips, NoPerceptual
from training.settings.recipe import TrainingRecipe
from training.settings.stage import StageSettings
from training.tracking.store.run_names import original_of

log = logging.getLogger(__name__)


def check_run(recipe: TrainingRecipe, *, newer_data: bool = False) -> RunDatasets:
    """What the stages are trained on (see `plan_datasets`), after the checks of those that are not
    finished; tells of newer data.

    Raises:
        FlowmapsrError: the run's folder holds another recipe; no dataset there, or another one
            than the run began with; what `init_from`, `prompts` or `perceptual.weights` names is
            missing or no file of weights; budgets that are not the dataset's; a cache too small
            for it; latents that the network cannot halve, or too small for a discriminator.
    """
    check_recipe(recipe)
    _check_not_shared(recipe)
    datasets = plan_datasets(recipe, newer_data=newer_data)
    unfinished = [stage.name for stage in stage_paths(recipe) if stage.finished_record() is None]
    unfinished += [stage.name for stage in stages_going_on(recipe)]
    for stage in map(recipe.stage, unfinished):
        opened = open_stage_datasets(recipe, stage.name, datasets)
        manifests = [dataset.manifest for dataset in opened]
        _warn_of_partial_batches(stage, recipe.most_workers, recipe.output)
        for dataset in opened:
            _check_dataset(recipe, stage, dataset)
        check_mixture(stage, opened)
        _check_held_out(recipe, opened)
        for warning in stage.warnings:
            _warn_once(recipe.output, f"stage {stage.name!r}: {warning}")
        draws = bucket_shares(stage, manifests, recipe.weights)
        check_given(stage, opened, draws)
        _warn_of_copies(stage, draws, [bucket_sizes(one, "train") for one in manifests], recipe)
        _check_sides(recipe, manifests[0], draws)
        check_cache(recipe, opened, draws)
        if stage.init_from is not None and is_local_path(stage.init_from):
            _check_weights(stage.init_from, f"stage {stage.name!r}: init_from")
        if isinstance(stage.perceptual, Lpips) and stage.perceptual.weights is not None:
            _check_weights(stage.perceptual.weights, f"stage {stage.name!r}: perceptual.weights")
        if stage.adversarial is not None:
            _check_discriminator(stage.adversarial.discriminator, manifests[0], draws)
    if unfinished:
        warn_of_newer_data(recipe, datasets, asked=newer_data)
    if isinstance(recipe.prompts, TextEncoderPrompts) and is_folder(recipe.prompts.source):
        _check_exists(recipe.prompts.source, "prompts.source")
    return datasets


def _check_dataset(recipe: TrainingRecipe, stage: StageSettings, dataset: Dataset) -> None:
    settings = dataset.manifest.dataset_recipe(dataset.root)
    what = dataset.root if recipe.sources else "the dataset"
    _check_fields(stage, settings, what)
    if stage.batch_fields.lq_pixels == "fresh" and settings.hq_pixels == "jpeg":
        _warn_once(
            recipe.output,
            f"{dataset.root} stores its HQ pixels as JPEG, and degradation=fresh degrades "
            "these: the LQ has JPEG's loss of the HQ too; hq_pixels=png has none",
        )


def _check_fields(stage: StageSettings, dataset: DatasetRecipe, what: str) -> None:
    """What the batches of the stage hold, the dataset must store."""
    needed, stored = stage.batch_fields, BatchFields.stored(dataset)
    if needed.lq_pixels == "fresh" and dataset.pairs:
        raise FlowmapsrError(
            f"stage {stage.name!r}: degradation=fresh would make other LQ pixels than the "
            f"real ones of the pairs that {what} holds: set degradation=stored"
        )
    missing = [name for name in needed.latents if name not in stored.latents]
    why = fix = None
    if missing == ["neg"]:
        why = "objective.guidance needs negatives"
        fix = f"latents=[{','.join((*stored.latents, 'neg'))}], or remove guidance"
    elif missing:
        why = f"it trains on the latents of {' and '.join(needed.latents)}"
        fix = f"latents=[{','.join(needed.latents)}]"
    elif needed.hq_pixels and not stored.hq_pixels:
        by_pixels = isinstance(stage.perceptual, NoPerceptual)
        why = f"{'its objective' if by_pixels else 'perceptual'} needs HQ pixels"
        fix = "hq_pixels=png" if by_pixels else "hq_pixels=jpeg, or set perceptual.kind=none"
    elif needed.lq_pixels == "fresh" and not stored.hq_pixels:
        why = "degradation=fresh degrades HQ pixels"
        fix = "hq_pixels=png, or set degradation=stored"
    elif (
        needed.lq_pixels == "stored"
        and dataset.lq_pixels == "none"
        and (dataset.pairs or not stored.hq_pixels)  # else the LQ is made of these once more
    ):
        why = "it trains on LQ pixels"
        fix = "lq_pixels=full" if dataset.pairs else "lq_pixels=small"
    if why is not None:
        raise FlowmapsrError(
            f"stage {stage.name!r}: {why}, which {what} does not have (it stores "
            f"latents=[{','.join(stored.latents)}], hq_pixels={dataset.hq_pixels}, "
            f"lq_pixels={dataset.lq_pixels}): build it with {fix}"
        )


def _check_held_out(recipe: TrainingRecipe, datasets: Sequence[Dataset]) -> None:
    """Without a validation split, all its samples would be all those of the training split."""
    without = [
        dataset.root
        for dataset in datasets
        if not any(one.split == "validation" and one.num_samples for one in dataset.manifest.shards)
    ]
    if recipe.validation_samples == "all" and len(without) == len(datasets):
        raise FlowmapsrError(
            "validation_samples=all, but the dataset holds no photos out: build it with "
            "validation_fraction=0.02, or set a number such as validation_samples=64"
        )
    if 0 < len(without) < len(datasets):
        _warn_once(
            recipe.output,
            f"{' and '.join(without)} of sources holds no photos out: validation measures the "
            "other sources alone; build it with validation_fraction=0.02 to measure it too",
        )


def _check_not_shared(recipe: TrainingRecipe) -> None:
    """A copy of a run would go on from checkpoints that the run has made since, and remove them."""
    original = original_of(Path(recipe.output))
    if original is None or recipe.checkpoints is None:
        return
    remedy = "remove it, and the command that made that run writes it again"
    theirs = read_record(RunPaths(Path(original)).recipe, type(recipe), remedy=remedy)
    if theirs is not None and theirs.checkpoints == recipe.checkpoints:
        raise FlowmapsrError(
            f"checkpoints: {recipe.output} is a copy of {original}, which has its checkpoints in "
            f"{recipe.checkpoints}: copy them to a place of its own, and give that as checkpoints="
        )


def _warn_of_partial_batches(stage: StageSettings, workers: int, output: str) -> None:
    for size in stage.batch_sizes:
        if size.fill(workers) < 1:
            _warn_once(
                output,
                f"stage {stage.name!r}: global_batch {size.global_batch} in micro batches of "
                f"{size.micro_batch} on {workers} workers fills {100 * size.fill(workers):.0f} % "
                "of them; the result is the same, and a multiple of "
                f"{size.micro_batch * workers} is faster",
            )


def _warn_of_copies(
    stage: StageSettings,
    draws: Sequence[BucketShare],
    sizes_of_sources: Sequence[Mapping[str, int]],
    recipe: TrainingRecipe,
) -> None:
    """A step takes all its samples from one bucket, and each again once it has had all."""
    output, sizes = recipe.output, Counter[str]()
    for one_size in sizes_of_sources:
        sizes.update(one_size)
    small = [one for one in draws if one.batch.global_batch > sizes[one.bucket]]
    if small:
        worst = max(small, key=lambda one: one.batch.global_batch / sizes[one.bucket])
        size, batch = sizes[worst.bucket], worst.batch.global_batch
        _warn_once(
            output,
            f"stage {stage.name!r}: {len(small)} of its {len(draws)} buckets of training samples "
            f"hold fewer than a step takes: bucket {worst.bucket} has "
            f"{'a single one' if size == 1 else size}, so global_batch {batch} has up to "
            f"{math.ceil(batch / size)} copies of each; give more photos, fewer buckets or a "
            "smaller global_batch",
        )
    elif sum(sizes[one.bucket] for one in draws) == 1:
        what = "trains on a single sample, which it will learn by heart"
        _warn_once(output, f"stage {stage.name!r} {what}")


@cache
def _warn_once(output: str, text: str) -> None:
    """Once for the run in `output`: a command checks it early, and again when it holds the run."""
    log.warning("%s", text)


def _check_sides(recipe: TrainingRecipe, manifest: Manifest, draws: Sequence[BucketShare]) -> None:
    multiple = recipe.model.latent_multiple
    downsample = recipe.model.downsample or manifest.require_codec().downsample
    pixels = multiple * downsample
    for bucket in map(Bucket.from_name, sorted(draw.bucket for draw in draws)):
        if bucket.height % pixels or bucket.width % pixels:
            raise FlowmapsrError(
                f"bucket {bucket.name}: its latents of {bucket.height // downsample}x"
                f"{bucket.width // downsample} cannot be halved as often as the network does: "
                f"sides must be multiples of {multiple} latents, {pixels} pixels. Build the "
                f"dataset with buckets.step={pixels}{recipe.model.other_sides}"
            )


def _check_exists(path: str, field: str) -> None:
    if not Path(path).exists():
        raise FlowmapsrError(f"{field}: there is no {path}; give a path that all workers see")


def _check_weights(path: str, field: str) -> None:
    """A folder is looked into by the workers, before they train."""
    _check_exists(path, field)
    if Path(path).is_file():
        try:
            tensor_entries(Path(path))
        except FlowmapsrError as error:
            raise FlowmapsrError(f"{field}: {error}") from error


def _check_discriminator(
    settings: DiscriminatorSettings, manifest: Manifest, draws: tuple[BucketShare, ...]
) -> None:
    for name in sorted(draw.bucket for draw in draws):
        bucket = Bucket.from_name(name)
        side = min(bucket.height, bucket.width) // manifest.require_codec().downsample
        if settings.patches(side) < 1:
            raise FlowmapsrError(
                f"adversarial.discriminator.strides {list(settings.strides)} leave no patch of the "
                f"latents of bucket {name}, whose shorter side is {side}: use smaller strides or "
                "fewer channels"
            )
