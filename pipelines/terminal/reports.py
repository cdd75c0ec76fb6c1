"""What commands that train, evaluate, enlarge and deploy print at their end: the JSON result, and
lines with the next command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.terminal.process_edge import VerbResult
from pipelines.terminal.text import command, counted, duration, table

if TYPE_CHECKING:
    from training.evaluation.differences import Difference
    from training.inference.batch import UpscaleReport
    from training.run_dir.records import Evaluation, EvaluationRow, StageRecord
    from training.settings.recipe import TrainingRecipe


def review_of(run: str) -> str:
    """Where a run is compared with others: the address of a page, or the command that shows it."""
    from training.tracking.store.run_names import review_page

    return review_page(Path(run)) or command("review", run)


def trained(recipe: TrainingRecipe, records: Sequence[StageRecord]) -> VerbResult:
    """A finished training run, where to review it, how to register its model, and what its dataset
    holds by now that it was not trained on."""
    from training.run_dir.further import on_old_weights, redo_command
    from training.tracking.store.run_names import model_in_mlflow
    from training.tracking.summary.ending import ending_lines

    run, newer, old = recipe.output, _newer_data(recipe), on_old_weights(recipe)
    model = f"{run}/{records[-1].model}"
    logged = model_in_mlflow(Path(run), records[-1].stage)
    lines = [
        f"Trained {counted(len(records), 'stage')} in {run}.",
        *ending_lines(Path(run)),
        f"  model    {model}",
        f"  review   {review_of(run)}",
        *(f"  kept     {one}; to train it anew: {redo_command(recipe)}" for one in old),
        *([] if logged is None else [f"  register mlflow.register_model({logged!r}, NAME)"]),
        *([f"  newer    {newer}"] if newer else []),
        f"Next: {command('upscale', 'PHOTO', '-o', 'OUT.png', '--model', run)}",
    ]
    stages = [record.model_dump(mode="json") for record in records]
    result = {
        "run": run,
        "model": model,
        "model_in_mlflow": logged,
        "review": review_of(run),
        "newer_data": newer,
        "stages": stages,
        "on_old_weights": {one.stage: str(one.grew_from) for one in old},
    }
    return VerbResult(result, lines)


def _newer_data(recipe: TrainingRecipe) -> str:
    """What the dataset holds by now that the training has not taken up."""
    from training.run_dir.datasets import about_newer_data, read_datasets

    datasets = read_datasets(recipe)
    return about_newer_data(recipe, datasets) if datasets else ""


def all_done(
    recipe: TrainingRecipe,
    rows: Sequence[EvaluationRow],
    seconds: Mapping[str, float],
    page: str,
) -> VerbResult:
    """A whole run, the `seconds` that its parts took, the `page` of its evaluation, and where to
    review it."""
    from training.run_dir.paths import stage_paths
    from training.tracking.summary.ending import ending_lines

    model, newer = str(stage_paths(recipe)[-1].model), _newer_data(recipe)
    lines = [
        *evaluation_table(rows),
        *ending_lines(Path(recipe.output)),
        f"Made in {', '.join(f'{duration(took)} ({part})' for part, took in seconds.items())}:",
        f"  manifest  {recipe.manifest}",
        f"  run       {recipe.output}",
        f"  model     {model}",
        f"  report    {page}",
        f"  review    {review_of(recipe.output)}",
        *([f"  newer     {newer}"] if newer else []),
        f"Next: {command('upscale', 'PHOTO', '-o', 'OUT.png', '--model', recipe.output)}",
    ]
    result = {
        "newer_data": newer,
        "manifest": recipe.manifest,
        "run": recipe.output,
        "model": model,
        "report": page,
        "review": review_of(recipe.output),
    }
    return VerbResult({**result, **evaluation_rows(rows), "seconds": dict(seconds)}, lines)


def with_unsent(found: VerbResult, recipe: TrainingRecipe) -> VerbResult:
    """The result of a command that trained, with what MLflow has not got yet as its last line."""
    from training.tracking.unsent import unsent_events, unsent_lines

    unsent = unsent_events(recipe)
    last = unsent_lines(unsent, again=command(*sys.argv[1:]))
    return VerbResult({**found.result, "unsent": unsent}, [*found.lines, *last])


def evaluated(model: str, found: Evaluation, output: str | None, page: str | None) -> VerbResult:
    """The evaluation table of models, the first of them from folder `model`, what could not be
    measured, and where its files are."""
    from training.evaluation.differences import differences

    next_step = command("upscale", "PHOTO", "-o", "OUT.png", "--model", model)
    compared = differences(found)
    result = {
        "model": model,
        "models": found.models,
        "differences": [one.model_dump(mode="json") for one in compared],
        **evaluation_rows(found.rows),
        "pictures": [row.model_dump(mode="json") for row in found.pictures],
        "notes": list(found.notes),
        "output": output,
        "report": page,
    }
    lines = [
        *evaluation_table(found.rows),
        *difference_lines(compared),
        *(f"Note: {note}" for note in found.notes),
        *([f"Wrote {output}: results of each photo, and the LQ pictures"] if output else []),
        *([f"Wrote {page}: open it in a browser"] if page else []),
        f"Next: {next_step}",
    ]
    return VerbResult(result, lines)


def difference_lines(compared: Sequence[Difference]) -> list[str]:
    """How models differ from the first one, photo by photo."""
    from training.evaluation.differences import difference_rows

    if not compared:
        return []
    metrics = list(dict.fromkeys(one.metric for one in compared))
    cells = [
        (
            row.method,
            f"x{row.scale:g}",
            str(row.steps),
            *(_difference(row.cells[name]) if name in row.cells else "-" for name in metrics),
        )
        for row in difference_rows(compared)
    ]
    return [
        *table((f"against {compared[0].against}", "scale", "steps", *metrics), cells),
        "Better or worse: the 95 % interval of the differences of single photos excludes zero.",
    ]


def _difference(one: Difference) -> str:
    return f"{one.mean:+.3g} {one.verdict}".rstrip()


def evaluation_rows(rows: Sequence[EvaluationRow]) -> dict[str, Any]:
    """For a program, with what the numbers mean."""
    from training.run_dir.records import convention_of

    return {
        "rows": [row.model_dump(mode="json") for row in rows],
        "convention": convention_of(rows),
    }


def evaluation_table(rows: Sequence[EvaluationRow]) -> list[str]:
    """Lines of the table that compares methods, and what its numbers mean."""
    from training.run_dir.records import convention_of

    convention = convention_of(rows)
    more = dict.fromkeys(name for row in rows for name in row.more)
    at_scale: dict[float, set[int | None]] = {}
    for row in rows:
        at_scale.setdefault(row.scale, set()).add(row.photos)
    unlike = any(len(counts) > 1 for counts in at_scale.values())
    cells = [
        (
            row.method,
            f"x{row.scale:g}",
            str(row.steps) if row.steps else "-",
            *([_digits(row.psnr, 2), _digits(row.ssim, 4)] if convention else []),
            f"{row.seconds:.2f}",
            "-" if row.parameters is None else f"{row.parameters / 1e6:.1f}",
            "-" if row.gflop is None else f"{row.gflop:.1f}",
            *([str(row.photos)] if unlike else []),
            *(_digits(row.more.get(name), 4) for name in more),
        )
        for row in rows
    ]
    headings = (
        "method",
        "scale",
        "steps",
        *(["PSNR dB", "SSIM"] if convention else []),
        "seconds",
        "M params",
        "GFLOP",
        *(["photos"] if unlike else []),
        *more,
    )
    costs = "GFLOP: for a picture of 256x256"
    return [
        *table(headings, cells),
        *([f"{convention}."] if convention else []),
        *([costs] if any(row.gflop for row in rows) else []),
    ]


def _digits(value: float | None, count: int) -> str:
    return "-" if value is None else f"{value:.{count}f}"


def upscaled(output: str, scale: float, report: UpscaleReport, *, unchanged: int) -> VerbResult:
    """The photos that were upscaled, those that were before, and those that could not be."""
    result = {
        "written": report.written,
        "unchanged": unchanged,
        "failed": [{"file": photo, "reason": reason} for photo, reason in report.failed],
        "notes": [{"file": photo, "note": note} for photo, note in report.notes],
        "megapixels": round(report.megapixels, 3),
        "seconds": round(report.seconds, 3),
    }
    lines = [f"Upscaled {counted(len(report.written), 'image')} by {scale:g} to {output}."]
    lines += [f"  {photo}: {note}" for photo, note in report.notes]
    if unchanged:
        lines += [f"Left {counted(unchanged, 'image')} as made before by the same settings."]
    if report.failed:
        lines += [f"Left out {counted(len(report.failed), 'image')}:"]
        lines += [f"  {photo}: {reason}" for photo, reason in report.failed]
    return VerbResult(result, lines, ok=not report.failed)


@dataclass(frozen=True)
class Deployed:
    """A deployment as the Prefect server holds it now."""

    deployment: str
    """`<flow>/<name>`, as Prefect's commands take it."""
    id: str
    output: str
    work_pool: str
    schedule: str | None
    schedule_id: str | None
    next_run: datetime | None
    started: str | None
    """The run that was started at once."""
    has_worker: bool
    """Whether a worker waits for runs of the pool."""


def deployed(found: Deployed) -> VerbResult:
    """A deployment, and the commands of Prefect that start, pause and remove it."""
    name = found.deployment
    commands = {
        "worker": f"prefect worker start --pool {shlex.quote(found.work_pool)}",
        "run_now": f"prefect deployment run {name}",
        "pause": f"prefect deployment schedule pause {name} {found.schedule_id}",
        "remove": f"prefect deployment delete {name}",
    }
    if found.next_run is None:
        due = found.schedule or "none: start it manually"
    else:
        due = f"{found.schedule}, next run {found.next_run:%Y-%m-%d %H:%M:%S %Z}"
    if found.schedule_id is None:
        del commands["pause"]
    lines = [
        f"Deployed {name}: writes {found.output}, one run at a time.",
        f"  schedule  {due}",
        *([f"  started   run {found.started}"] if found.started else []),
        *(f"  {key.replace('_', ' '):8}  {text}" for key, text in commands.items()),
    ]
    if not found.has_worker:
        lines += [
            "The worker needs AWS_*, RAY_ADDRESS and MLFLOW_TRACKING_URI in its own environment.",
            f"Next: {commands['worker']}",
        ]
    elif found.started is None:
        lines.append(f"Next: {commands['run_now']}")
    else:
        lines.append(f"Next: {command('status', found.output, '--watch')}")
    due_at = found.next_run and found.next_run.isoformat()
    return VerbResult({**asdict(found), "next_run": due_at, "commands": commands}, lines)
