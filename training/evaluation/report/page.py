"""An evaluation as one page that opens offline: `report.html`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from datagen.io.weight_files import read_json
from training.evaluation.differences import difference_rows, differences
from training.evaluation.main_metric import main_metric
from training.evaluation.report.charts import AXES, metric_chart, trade_chart
from training.evaluation.report.examples import Example
from training.evaluation.report.tables import Cell, MethodRow, table
from training.evaluation.statistics import LEAST, Interval
from training.run_dir.paths import StagePaths
from training.run_dir.records import BICUBIC, PSNR, Evaluation, Seconds, convention_of
from training.run_dir.starts import read_progress
from training.settings.evaluation import SOURCES, EvaluationSettings
from training.tracking.provenance import code_tags
from training.weights.model_folder import CONFIG


@dataclass(frozen=True)
class ScalePart:
    """What the page shows of one scale."""

    scale: float
    photos: int
    metrics: tuple[str, ...]
    rows: tuple[MethodRow, ...]
    charts: tuple[Markup, ...]


def headline(part: ScalePart) -> str:
    """The result at a scale in one sentence: the model's best number of steps, and whether
    its difference from the baseline is more than chance."""
    metric = main_metric(part.metrics)
    compared = [
        (row, cell)
        for row in part.rows
        if row.steps and metric is not None
        for cell in row.cells
        if cell.metric == metric.name and cell.difference is not None and cell.difference.count
    ]
    if metric is None or not compared:
        return f"x{part.scale:g}: nothing to compare."
    row, cell = max(compared, key=lambda one: metric.rank(one[1].value.mean))
    assert cell.difference is not None
    by = metric.told_difference(cell.difference.mean)
    kind = " PSNR" if metric.name == PSNR else f" ({metric.better} is better)"
    text = f"x{part.scale:g}: {row.label} {by}{kind} against {BICUBIC}"
    if math.isnan(cell.difference.low):
        return f"{text} on {cell.difference.count} photos, too few to say more (from {LEAST} on)."
    bounds = f"95 % interval {cell.difference.low:+.2f} to {cell.difference.high:+.2f}"
    sure = "" if cell.difference.excludes_zero else ", which may be chance"
    return f"{text} ({bounds}, {cell.difference.count} photos){sure}."


def report_page(
    title: str,
    settings: EvaluationSettings,
    found: Evaluation,
    examples: Sequence[Example],
    *,
    timings: Sequence[Seconds] = (),
) -> bytes:
    """The page of an evaluation; the same evaluation on the same code gives the same bytes.

    Args:
        timings: of a benchmark that times.
    """
    scales = list(dict.fromkeys(row.scale for row in found.rows))
    parts = [_part(found, scale) for scale in scales]
    compared = differences(found)
    text = _template().render(
        title=title,
        headlines=[headline(part) for part in parts] or ["Seconds of one picture."],
        parts=parts,
        examples=examples,
        differences=difference_rows(compared),
        against=compared[0].against if compared else "",
        differing=list(dict.fromkeys(one.metric for one in compared)),
        timings=timings,
        facts=_facts(settings, found),
        notes=found.notes,
        better=found.better,
        convention=convention_of(found.rows),
        farthest_from="original" if settings.has_originals else f"result of {BICUBIC}",
        baseline=BICUBIC,
        least=LEAST,
    )
    return text.encode()


def _facts(settings: EvaluationSettings, found: Evaluation) -> dict[str, str]:
    """What the page was made of, and how to make it again."""
    code = code_tags()
    at = f", commit {code['code.commit']}" if "code.commit" in code else ""
    changed = " and changes" if code.get("code.dirty") == "true" else ""
    models = {name: _model_facts(folder) for name, folder in found.models.items()}
    return {
        **(models if len(models) > 1 else {"model": ", ".join(models.values())}),
        **({"photos": settings.place} if found.rows else {}),
        "settings": settings.model_dump_json(exclude=set(SOURCES), exclude_none=True),
        "code": f"flowmapsr {code['code.version']}{at}{changed}",
        **(
            {"seconds": f"mean of a photo, alone in a batch, on {found.hardware}"}
            if found.rows
            else {}
        ),
    }


def _model_facts(folder: str) -> str:
    config = read_json(Path(folder) / CONFIG)
    return (
        f"{folder}, stage {config['stage']}, step {config.get('step')}; recipe "
        f"{config['recipe_digest']}, dataset {config['dataset_digest']}{_cost(Path(folder))}"
    )


def _cost(model: Path) -> str:
    """Of the training, where the model is still in its run's folder."""
    run = model.parent.parent.parent
    if StagePaths(run, model.parent.name).model != model:
        return ""
    found = [read_progress(StagePaths(run, one.name)) for one in model.parent.parent.iterdir()]
    hours = sum(one.worker_hours for one in found if one is not None)
    return f"; trained for {hours:.2g} worker hours, all stages"


def _part(found: Evaluation, scale: float) -> ScalePart:
    rows = table(found.rows, found.pictures, scale, found.better, models=tuple(found.models))
    metrics = list(dict.fromkeys(cell.metric for row in rows for cell in row.cells))
    perceptual = [name for name in metrics if found.better.get(name) == "lower"]
    charts = [
        *(
            metric_chart(rows, name, found.better.get(name), axis)
            for axis in AXES
            for name in metrics
        ),
        *(trade_chart(rows, name, found.better) for name in perceptual),
    ]
    photos = {row.photo for row in found.pictures if row.scale == scale}
    drawn = tuple(Markup(one) for one in charts if one is not None)  # made here: safe as it is
    return ScalePart(scale, len(photos), tuple(metrics), tuple(rows), drawn)


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "interval": _interval, "cell": _cell_of}
    text = resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _number(value: float) -> str:
    """With as many digits as mean something: `24.36`, `0.6044`."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _interval(value: Interval, *, signed: bool = False) -> str:
    """Its bounds, or nothing where photos are too few."""
    if math.isnan(value.low):
        return ""
    return " to ".join(
        f"{bound:+.3g}" if signed else _number(bound) for bound in (value.low, value.high)
    )


def _cell_of(row: MethodRow, metric: str) -> Cell | None:
    return next((cell for cell in row.cells if cell.metric == metric), None)
