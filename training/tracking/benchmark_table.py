"""What a run of MLflow's holds of a benchmark: the table as its text and as metrics, and links to
the trainings and datasets of the models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from datagen.errors import FlowmapsrError
from datagen.records import read_record
from training.run_dir.datasets import read_datasets
from training.run_dir.paths import RunPaths
from training.run_dir.records import EvaluationRow, Seconds
from training.settings.recipe import TrainingRecipe
from training.tracking.events import NOTE, DatasetInput, Event, Tags
from training.tracking.store.run_names import read_names, where_tracked
from training.tracking.summary.stage_table import Table


def table_of(rows: Sequence[EvaluationRow], timings: Sequence[Seconds] = ()) -> Table:
    """All methods with all metrics, and seconds of timed pictures."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.values))
    if not rows:
        return Table(
            ("method", "steps", "pixels", "seconds"),
            tuple((one.method, one.steps, f"{one.side}x{one.side}", f"{one.seconds:.4g}")
                  for one in timings),
        )  # fmt: skip
    cells = tuple(
        (
            row.method,
            f"x{row.scale:g}",
            row.steps or "-",
            *(f"{row.values[name]:.4f}" if name in row.values else "-" for name in metrics),
            f"{row.seconds:.3g}",
        )
        for row in rows
    )
    return Table(("method", "scale", "steps", *metrics, "seconds"), cells)


def values_of(rows: Sequence[EvaluationRow], timings: Sequence[Seconds]) -> dict[str, float]:
    """As metrics of MLflow: `psnr_y_x4_nfe2/flowmapsr`, `seconds_1024_nfe2/flowmapsr`."""
    values: dict[str, float] = {}
    for row in rows:
        where = f"x{row.scale:g}{f'_nfe{row.steps}' if row.steps else ''}/{_plain(row.method)}"
        values |= {f"{name}_{where}": value for name, value in row.values.items()}
    for one in timings:
        values[f"seconds_{one.side}_nfe{one.steps}/{_plain(one.method)}"] = one.seconds
    return values


def _plain(name: str) -> str:
    """In characters that MLflow takes."""
    return re.sub(r"[^\w. -]", "-", name)


def links(
    models: Mapping[str, str], trained_on: Mapping[str, str], table: Table
) -> Iterator[Event]:
    """The table and the trainings as the run's text, trainings and datasets as tags and inputs.

    Args:
        models: folder of each, by name.
        trained_on: digest of the dataset of each, as its config says.
    """
    datasets: dict[str, DatasetInput] = {}
    digests: dict[str, None] = {}
    tags, lines = {}, []
    for name, folder in models.items():
        run = _run_of(Path(folder))
        names = None if run is None else read_names(run)
        if run is not None and names is not None:
            tags[f"training.{_plain(name)}"] = names.parent
            lines.append(f"- {name}: `{folder}`, trained in {where_tracked(run)}")
        else:
            lines.append(f"- {name}: `{folder}`")
        own = _datasets(run)
        datasets |= {one.digest: one for one in own}
        digests |= dict.fromkeys([one.digest for one in own] or [trained_on[name]])
    tags[NOTE] = f"{table.to_markdown()}\n" + "\n".join(lines)
    tags["dataset.digest"] = ", ".join(digests)  # as `digest_tag` of trainings
    yield Tags(values=tags)
    yield from datasets.values()


def _run_of(model: Path) -> Path | None:
    """The run whose stage has this model: `<run>/stages/<name>/model`."""
    run = model.parent.parent.parent
    return run if RunPaths(run).recipe.is_file() else None


def _datasets(run: Path | None) -> list[DatasetInput]:
    """Those that a run was trained on; none that cannot be told."""
    if run is None:
        return []
    try:
        recipe = read_record(RunPaths(run).recipe, TrainingRecipe, remedy="train it again")
        if recipe is None:
            return []
        known = read_datasets(recipe.model_copy(update={"output": str(run)}))  # it may have moved
    except FlowmapsrError:
        return []
    if known is None:
        return []
    return [
        DatasetInput(
            name=PurePosixPath(place).parent.name or place,
            digest=state.digest,
            source=place,
            samples=state.samples,
        )
        for state_of_all in known.states
        for place, state in zip(recipe.places, state_of_all.parts, strict=False)
    ]
