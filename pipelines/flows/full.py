"""The full flow: photos -> dataset -> trained stages -> evaluation; skips what is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from prefect import flow

from datagen.io import storage
from datagen.records import FrozenModel
from pipelines.cluster.ray_session import ray_cluster
from pipelines.environment import default_tracking_uri
from pipelines.flows.dataset import build_dataset
from pipelines.flows.training import train, train_stages
from pipelines.orchestration.full_page import show_full
from pipelines.orchestration.guard import guarded, is_deployed, task_step
from pipelines.orchestration.run_report import reported
from pipelines.recipes.full_recipe import COMPARISON, FullRecipe
from pipelines.terminal.doing import doing
from training.run_dir.records import EvaluationRow
from training.tracking.evaluation_log import log_evaluation

log = logging.getLogger(__name__)

COMPARED_PHOTOS = 6
"""Most photos in the picture."""


class FullRecord(FrozenModel):
    """What a full run leaves behind, for `report.json`."""

    rows: tuple[EvaluationRow, ...]
    seconds: dict[str, float]
    """Wall time of each part."""


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[part] = round(time.monotonic() - start, 3)


@flow(name="full", flow_run_name="{recipe.output}")
@reported
def full(recipe: FullRecipe) -> FullRecord:
    """Photos to an evaluated model; run it again to continue where it stopped.

    Args:
        recipe: The dataset, the training and the evaluation, and where all of it is written.
    """
    return make_all(recipe)


def make_all(recipe: FullRecipe, *, newer_data: bool = False) -> FullRecord:
    """The parts in their order; see `train_stages` for `newer_data`."""
    default_tracking_uri(recipe.output, worker=is_deployed())
    seconds: dict[str, float] = {}
    with ray_cluster(cpus=max(recipe.dataset.least_workers, recipe.training.most_workers)):
        with _timed(seconds, "dataset"):
            guarded(build_dataset, recipe.dataset)
        with _timed(seconds, "training"):
            work = partial(train_stages, recipe.training, newer_data=newer_data)
            guarded(train, recipe.training, work)
    doing("evaluating")
    with _timed(seconds, "evaluation"):
        rows = task_step("evaluate", lambda: evaluate_run(recipe))
    picture = str(Path(recipe.output) / COMPARISON)
    doing("drawing the comparison")
    with _timed(seconds, "comparison"):
        task_step("compare", lambda: draw_comparison(recipe, picture, rows[0].scale))
    show_full(recipe, rows, seconds, picture)
    return FullRecord(rows=tuple(rows), seconds=seconds)


def evaluate_run(recipe: FullRecipe) -> list[EvaluationRow]:
    """The last stage's model on held-out photos, as a table, as a page below the output, and as
    both in the run in MLflow."""
    # heavy: not before it is needed
    from training.evaluation.report.evaluation_page import evaluate_with_page

    training, settings = recipe.training, recipe.evaluation
    found, page = evaluate_with_page(training.output, settings)
    for note in found.notes:
        log.warning("evaluation: %s", note)
    storage.write_bytes(recipe.report, page)
    log_evaluation(training, settings, found.rows, page)
    return list(found.rows)


def draw_comparison(recipe: FullRecipe, path: str, scale: float) -> None:
    """Restores held-out photos and shows every number of steps beside bicubic and original."""
    from training.evaluation.comparison import comparison  # heavy: not before it is needed
    from training.evaluation.photo_list import list_photos
    from training.evaluation.photos import read_photos
    from training.inference.upscaler import Upscaler

    settings = recipe.evaluation
    upscaler = Upscaler.from_pretrained(
        recipe.training.output,
        lora_scale=settings.lora_scale,
        guidance=settings.guidance,
        precision=settings.precision,
        seed=settings.seed,
    )
    photos = read_photos(
        list_photos(settings).at(scale),
        settings,
        upscaler.config.degradation,
        on_left_out=lambda _: None,  # the evaluation has told
    )
    shown = list(islice(photos, COMPARED_PHOTOS))
    picture = comparison(upscaler, shown, settings.steps, color_fix=settings.color_fix)
    with storage.open_atomic(path) as file:
        picture.save(file, format="PNG")
