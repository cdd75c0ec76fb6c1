"""Which state of its datasets each stage of a run is trained on: `<run>/datasets.json`.

A build may extend a dataset while a run is trained on it. The run goes on with the state that it
began with, which the dataset keeps (`datagen/dataset/manifest.py`); a stage that has not begun
takes up a newer one if it is asked to.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NoReturn, Self

from datagen.dataset.layout import MANIFEST
from datagen.dataset.manifest import Dataset, Manifest, dataset_root, open_dataset, open_state
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import FrozenModel, read_record
from training.run_dir.paths import RunPaths, stage_paths
from training.run_dir.starts import read_starts
from training.settings.recipe import TrainingRecipe

log = logging.getLogger(__name__)

_DIGITS = 12
"""Of a digest, in a message."""
_REMEDY = "remove it, and stages that have not finished are trained on the dataset as it is now"


class OtherDataset(FlowmapsrError):
    """What a stage is trained on is no longer at the place of its dataset."""


def digest_of(digests: Sequence[str]) -> str:
    """Identifies the samples of datasets together: of one, its own digest."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class DatasetState(FrozenModel):
    """A state in which the dataset was, or all of a mixture, as a run took it up."""

    digest: str
    """See `digest_of`."""
    samples: int
    time: float
    """When it was taken up, in seconds since the epoch."""
    sources: tuple[DatasetState, ...] = ()
    """Of each dataset of a mixture, in order."""

    @property
    def parts(self) -> tuple[DatasetState, ...]:
        """Of each dataset."""
        return self.sources or (self,)

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> Self:
        return cls(
            digest=digest_of([manifest.digest for manifest in manifests]),
            samples=sum(manifest.num_samples for manifest in manifests),
            time=time.time(),
            sources=tuple(map(DatasetState.of, ([one] for one in manifests)))
            if len(manifests) > 1
            else (),
        )


class RunDatasets(FrozenModel):
    """What each stage of a run is trained on."""

    stages: dict[str, DatasetState]

    @property
    def states(self) -> list[DatasetState]:
        """All of them, each once, in the order of the stages."""
        return list({state.digest: state for state in self.stages.values()}.values())


def plan_datasets(recipe: TrainingRecipe, *, newer_data: bool = False) -> RunDatasets:
    """What a command trains the stages on: what is recorded; for a run that has not begun, the
    dataset as it is now; with `newer_data` the same for the stages that have not begun.

    Raises:
        FlowmapsrError: there is no dataset, or with `newer_data` another one.
    """
    names, waiting = [stage.name for stage in recipe.stages], _waiting(recipe)
    known = read_datasets(recipe) or _of_records(recipe)
    if known is None or waiting == names:
        return RunDatasets(stages=dict.fromkeys(names, _now(recipe)))
    if not newer_data or not waiting:
        return known
    open_stage_datasets(recipe, waiting[0], known)  # refuses another dataset
    return RunDatasets(stages={**known.stages, **dict.fromkeys(waiting, _now(recipe))})


def _now(recipe: TrainingRecipe) -> DatasetState:
    return DatasetState.of([open_dataset(place).manifest for place in recipe.places])


def write_datasets(recipe: TrainingRecipe, datasets: RunDatasets) -> None:
    """Records it; the caller holds the run's lock."""
    path = RunPaths(Path(recipe.output)).datasets
    storage.write_bytes(str(path), datasets.model_dump_json(indent=2).encode())


def read_datasets(recipe: TrainingRecipe) -> RunDatasets | None:
    """What is recorded in the run's folder, if anything is."""
    path = RunPaths(Path(recipe.output)).datasets
    return read_record(path, RunDatasets, remedy=_REMEDY)


def recorded_datasets(recipe: TrainingRecipe) -> RunDatasets:
    """What the run's stages are trained on; without a record, as `plan_datasets`."""
    return read_datasets(recipe) or plan_datasets(recipe)


def open_stage_datasets(
    recipe: TrainingRecipe, stage: str, datasets: RunDatasets
) -> tuple[Dataset, ...]:
    """The datasets of a stage, in the order of the recipe.

    Raises:
        OtherDataset: there is another dataset now; says which and since when.
    """
    mine = datasets.stages[stage]
    return tuple(
        open_state(place, part.digest) or _refuse_other(recipe, stage, place, part)
        for place, part in zip(recipe.places, mine.parts, strict=True)
    )


def _refuse_other(recipe: TrainingRecipe, stage: str, place: str, mine: DatasetState) -> NoReturn:
    now, root = open_dataset(place).manifest, dataset_root(place)
    written = storage.modified(storage.join(root, MANIFEST))
    name = f"sources.{recipe.places.index(place)}.uri" if recipe.sources else "manifest"
    raise OtherDataset(
        f"{name} {place}: the dataset at this place is another one now, of digest "
        f"{now.digest[:_DIGITS]}, written {_date(written)}; stage {stage!r} of {recipe.output} is "
        f"of digest {mine.digest[:_DIGITS]}, taken up {_date(mine.time)}, which is no earlier "
        f"state of it. Put that dataset back, give the place where it is as {name}=..., or train "
        "on the new one into another output"
    )


@contextmanager
def replacement_told(recipe: TrainingRecipe, stage: str) -> Iterator[None]:
    """An error in the block says first, if that is so, that the dataset was replaced meanwhile."""
    try:
        yield
    except FlowmapsrError as error:
        try:
            open_stage_datasets(recipe, stage, recorded_datasets(recipe))
        except OtherDataset as other:
            raise OtherDataset(f"{other}. It was found by this: {error}") from error
        except FlowmapsrError as unknown:
            log.warning("it is not known whether the dataset is the same: %s", unknown)
        raise


def about_newer_data(recipe: TrainingRecipe, datasets: RunDatasets, *, asked: bool = False) -> str:
    """What the dataset holds that the run has not taken up, and what can be done; where it holds
    nothing more empty, or if it was `asked` for the stages that have all of it. A dataset that
    cannot be read is told too."""
    mine = datasets.stages[recipe.stages[-1].name]
    try:
        now = _now(recipe)
    except FlowmapsrError as error:
        return f"it is not known whether there are newer data: {error}"
    roots = [dataset_root(place) for place in recipe.places]
    root = roots[0] if len(roots) == 1 else f"the mixture of {' and '.join(roots)}"
    if now.digest == mine.digest:
        names = [name for name, one in datasets.stages.items() if one.digest == now.digest]
        told = f"trained on all {now.samples} samples that {root} has now: {', '.join(names)}"
        return told if asked else ""
    waiting = _waiting(recipe)
    if waiting:
        more = f"To train {' and '.join(waiting)} on all of them, add --newer-data"
    else:
        more = "Every stage has begun: to train on all of them, give another output"
    added = now.samples - mine.samples
    what = f"{added} samples more" if added > 0 else "other samples"
    return (
        f"{root} has {what} than this training took up ({now.samples}, not "
        f"{mine.samples}), and it is trained without them. {more}"
    )


def warn_of_newer_data(
    recipe: TrainingRecipe, datasets: RunDatasets, *, asked: bool = False
) -> None:
    """The same as a warning, each only once: a command checks a run twice, and each stage asks."""
    text = about_newer_data(recipe, datasets, asked=asked)
    if text:
        _warn_once(text)


@cache
def _warn_once(text: str) -> None:
    log.warning(text)


def _waiting(recipe: TrainingRecipe) -> list[str]:
    """The stages that have not begun."""
    stages = stage_paths(recipe)
    return [one.name for one in stages if not (one.starts.exists() or one.done.exists())]


def _of_records(recipe: TrainingRecipe) -> RunDatasets | None:
    """What finished stages say, in the folder of a version that recorded nothing else."""
    for stage in stage_paths(recipe) if not recipe.sources else ():
        record = stage.finished_record()
        if record is not None and record.dataset_digest:
            found = open_state(recipe.manifest, record.dataset_digest)
            state = DatasetState(
                digest=record.dataset_digest,
                samples=found.manifest.num_samples if found else 0,
                time=next((start.time for start in read_starts(stage)), 0.0),
            )
            return RunDatasets(stages={one.name: state for one in recipe.stages})
    return None


def _date(seconds: float | None) -> str:
    if not seconds:
        return "at an unknown time"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
