"""What each command prints at its end: the JSON result, and lines with the next command."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich import filesize

from datagen.dataset.layout import HISTOGRAMS, MANIFEST, MANIFESTS, PREVIEW, REJECTED
from pipelines.terminal.process_edge import VerbResult
from pipelines.terminal.text import command, counted, duration, table, yaml_lines

if TYPE_CHECKING:
    from datagen.build.survey import Survey
    from datagen.dataset.manifest import Manifest
    from datagen.review.inspect_sample import InspectedSample
    from datagen.review.verify import DatasetIssue
    from training.inference.files import UpscaleReport
    from training.run_dir.records import EvaluationRow, StageRecord
    from training.settings.recipe import TrainingRecipe
    from training.tracking.status import RunComparison, RunStatus, StageStatus

Found = TypeVar("Found")
RUNS_ABREAST = 6
"""Columns of a comparison; more runs go below."""
LONGEST_CELL = 40


def built(dataset: str, manifest: Manifest, found: Survey, *, recipe: str) -> VerbResult:
    """A complete dataset, what this command `found` of it before, and a recipe to train with."""
    from training.tracking.dataset_links import EXPERIMENT

    how = "is complete" if found.complete is None else "was complete already"
    folder = dataset.rstrip("/")
    path = f"{folder}/{MANIFEST}"
    left_out = counted(manifest.rejected.count, "image")
    left_out += f" (see {REJECTED})" if manifest.rejected.count else ""
    lines = [
        f"The dataset {how}: {_contents(manifest)}.",
        f"  manifest  {path}",
        f"  preview   {folder}/{PREVIEW}",
        f"  left out  {left_out}",
    ]
    if other_files := found.listing.other_files():
        lines.append(f"  no photos {other_files}")
    lines.append(f"  review    {command('review', EXPERIMENT)}")
    added = manifest.num_samples - (found.manifest.num_samples if found.manifest else 0)
    if found.manifest is not None and added:
        lines.append(f"  added     {counted(added, 'sample')}")
    gone, changed = sorted(found.missing), sorted(found.changed)
    if gone:
        lines.append(
            f"  missing   {counted(len(gone), 'photo')} not found any more, such as "
            f"{', '.join(gone[:3])}; their samples stay"
        )
    if changed:
        lines.append(
            f"  changed   {counted(len(changed), 'photo')}, such as {', '.join(changed[:3])}; "
            "samples of the old content stay"
        )
    lines.append(f"Next: {command('train', recipe, f'manifest={path}', 'output=RUN')}")
    result = {"output": dataset, "manifest": path, "added": added, "gone": gone, "changed": changed}
    result["passed_over"] = {item.kind: item._asdict() for item in found.listing.passed_over}
    return VerbResult({**result, **_summary(manifest)}, lines)


def inspected(dataset: str, manifest: Manifest, kept: Sequence[str] | None) -> VerbResult:
    """What a dataset holds; `kept` are the digests of all states in which it was finished, None
    if they cannot be listed."""
    counts: Counter[tuple[str, str]] = Counter()
    for shard in manifest.shards:
        counts[shard.bucket, shard.split] += shard.num_samples
    rows = [(bucket, split, str(count)) for (bucket, split), count in sorted(counts.items())]
    codec = manifest.codec
    states = "not known" if kept is None else counted(len(kept), "finished state")
    lines = [
        f"{dataset}: {_contents(manifest)}.",
        f"codec {codec.kind}, {codec.channels} channels at 1/{codec.downsample} of the size",
        f"digest {manifest.digest}",
        f"kept for trainings: {states}, in {dataset}/{MANIFESTS}",
        *table(("bucket", "split", "samples"), rows),
        *table(("drawn for LQ", "from 5%", "median", "to 95%"), _quantiles(manifest)),
        f"pictures: {dataset}/{PREVIEW}, {dataset}/{HISTOGRAMS}",
        f"left out: {counted(manifest.rejected.count, 'image')}",
        *(f"  {count} x {reason}" for reason, count in manifest.rejected.by_reason.items()),
        f"Next: {command('dataset', 'verify', dataset)}",
    ]
    result = {"uri": dataset, **_summary(manifest), "recipe": manifest.recipe}
    result["kept"] = kept
    result["stats"] = manifest.stats.model_dump(mode="json")
    result["buckets"] = [
        {"bucket": bucket, "split": split, "num_samples": count}
        for (bucket, split), count in sorted(counts.items())
    ]
    return VerbResult(result, lines)


def sample_inspected(dataset: str, sample: InspectedSample, files: Sequence[str]) -> VerbResult:
    """One sample: its pictures and all values drawn for it."""
    drawn = sample.drawn.model_dump(mode="json")
    lines = [
        f"{sample.drawn.key} in {sample.shard}",
        *yaml_lines(drawn),
        *(f"wrote {uri}" for uri in files),
    ]
    result = {"uri": dataset, "shard": sample.shard, "sample": drawn, "files": list(files)}
    return VerbResult(result, lines)


def _quantiles(manifest: Manifest) -> list[tuple[str, ...]]:
    """Rows of the 5%, 50% and 95% quantiles, from counts in bins and the bounds of the recipe."""
    import numpy as np

    from datagen.dataset import statistics as bins
    from datagen.degradation.settings import DegradationSettings, paths

    chain = DegradationSettings.model_validate(manifest.recipe["degradation"])
    steps = [step for path in paths(chain.operations) for step in path]
    counts = manifest.stats.counts
    drawn: dict[str, tuple[Sequence[float], Sequence[int], Sequence[Any], str]] = {
        "scale": (bins.SCALE, counts.scale, [chain], "scale"),
        "Gaussian sigma": (bins.GAUSSIAN_SIGMA, counts.gaussian_sigma, steps, "gaussian_sigma"),
        "Poisson scale": (bins.POISSON_SCALE, counts.poisson_scale, steps, "poisson_scale"),
        "JPEG quality": (bins.JPEG_QUALITY, counts.jpeg_quality, steps, "quality"),
        "photo's shorter side": (bins.PHOTO_SIDE, counts.photo_side, [], ""),
    }
    rows = []
    for name, (edges, found, settings, field) in drawn.items():
        if sum(found):
            values = [bins.quantile(edges, found, part) for part in (0.05, 0.5, 0.95)]
            if limits := [getattr(step, field) for step in settings if hasattr(step, field)]:
                values = np.clip(values, np.min(limits), np.max(limits)).tolist()
            rows.append((name, *(f"{value:.3g}" for value in values)))
    return rows


def verified(
    dataset: str,
    faults: Sequence[DatasetIssue],
    *,
    recipe: str,
    without_photo: Sequence[str] | None = None,
) -> VerbResult:
    """How a dataset compares with its manifest, and the recipe to train with; `without_photo` are
    the shards of which no sample could be made again, None if none was to be."""
    result: dict[str, Any] = {"ok": not faults, "faults": [fault._asdict() for fault in faults]}
    if without_photo is not None:
        result["not_recomputed"] = list(without_photo)
    if faults:
        lines = [f"{dataset}: {counted(len(faults), 'fault')}"]
        lines += [f"  {fault.where}: {fault.what}" for fault in faults]
        return VerbResult(result, lines, ok=False)
    next_step = command("train", recipe, f"manifest={dataset}", "output=RUN")
    lines = [f"{dataset}: every part matches its manifest.", f"Next: {next_step}"]
    if without_photo is not None:
        missing = f"; not of {counted(len(without_photo), 'shard')}, whose photos are gone"
        lines.insert(
            1,
            "One sample of each shard was made again and is the same"
            f"{missing if without_photo else ''}.",
        )
    return VerbResult(result, lines)


def review_of(run: str) -> str:
    """Where a run is compared with others: the address of a page, or the command that shows it."""
    from training.tracking.mlflow_client import review_page

    return review_page(Path(run)) or command("review", run)


def trained(recipe: TrainingRecipe, records: Sequence[StageRecord]) -> VerbResult:
    """A finished training run, where to review it, how to register its model, and what its dataset
    holds by now that it was not trained on."""
    from training.run_dir.further import on_old_weights, redo_command
    from training.tracking.ending import ending_lines
    from training.tracking.mlflow_client import model_in_mlflow

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
) -> VerbResult:
    """A whole run, the `seconds` that its parts took, and where to review it."""
    from training.run_dir.paths import stage_paths
    from training.tracking.ending import ending_lines

    model, newer = str(stage_paths(recipe)[-1].model), _newer_data(recipe)
    lines = [
        *evaluation_table(rows),
        *ending_lines(Path(recipe.output)),
        f"Made in {', '.join(f'{duration(took)} ({part})' for part, took in seconds.items())}:",
        f"  manifest  {recipe.manifest}",
        f"  run       {recipe.output}",
        f"  model     {model}",
        f"  review    {review_of(recipe.output)}",
        *([f"  newer     {newer}"] if newer else []),
        f"Next: {command('upscale', 'PHOTO', '-o', 'OUT.png', '--model', recipe.output)}",
    ]
    result = {
        "newer_data": newer,
        "manifest": recipe.manifest,
        "run": recipe.output,
        "model": model,
    }
    result["review"] = review_of(recipe.output)
    return VerbResult({**result, **_rows(rows), "seconds": dict(seconds)}, lines)


def with_unsent(found: VerbResult, recipe: TrainingRecipe) -> VerbResult:
    """The result of a command that trained, with what MLflow has not got yet as its last line."""
    from training.tracking.unsent import unsent_events, unsent_lines

    unsent = unsent_events(recipe)
    last = unsent_lines(unsent, again=command(*sys.argv[1:]))
    return VerbResult({**found.result, "unsent": unsent}, [*found.lines, *last])


def evaluated(model: str, rows: Sequence[EvaluationRow]) -> VerbResult:
    """The evaluation table of a model."""
    next_step = command("upscale", "PHOTO", "-o", "OUT.png", "--model", model)
    result = {"model": model, **_rows(rows)}
    return VerbResult(result, [*evaluation_table(rows), f"Next: {next_step}"])


def _rows(rows: Sequence[EvaluationRow]) -> dict[str, Any]:
    from training.run_dir.records import CONVENTION

    return {"rows": [row.model_dump(mode="json") for row in rows], "convention": CONVENTION}


def evaluation_table(rows: Sequence[EvaluationRow]) -> list[str]:
    """Lines of the table that compares methods, and what its numbers mean."""
    from training.run_dir.records import CONVENTION

    cells = [
        (
            row.method,
            f"x{row.scale:g}",
            str(row.steps) if row.steps else "-",
            f"{row.psnr:.2f}",
            f"{row.ssim:.4f}",
            f"{row.seconds:.2f}",
        )
        for row in rows
    ]
    headings = ("method", "scale", "steps", "PSNR dB", "SSIM", "seconds")
    return [*table(headings, cells), f"{CONVENTION}."]


def upscaled(output: str, scale: float, report: UpscaleReport) -> VerbResult:
    """The photos that were upscaled, and those that could not be."""
    failed = [{"file": str(path), "reason": reason} for path, reason in report.failed]
    result = {"written": [str(path) for path in report.written], "failed": failed}
    lines = [f"Upscaled {counted(len(report.written), 'image')} by {scale:g} to {output}."]
    if failed:
        lines += [f"Left out {counted(len(failed), 'image')}:"]
        lines += [f"  {path}: {reason}" for path, reason in report.failed]
    return VerbResult(result, lines, ok=not failed)


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
        *(f"  {key.replace('_', ' '):8}  {text}" for key, text in commands.items()),
        "The worker needs AWS_*, RAY_ADDRESS and MLFLOW_TRACKING_URI in its own environment.",
        f"Next: {commands['worker']}",
    ]
    due_at = found.next_run and found.next_run.isoformat()
    return VerbResult({**asdict(found), "next_run": due_at, "commands": commands}, lines)


def status_report(found: RunStatus) -> VerbResult:
    """Progress of a training run."""
    from training.run_dir.paths import RECIPE

    headings = ("stage", "state", "step", "images/s", "left", "last checkpoint", "restarts")
    lines = [found.run, *table(headings, [_stage_cells(stage) for stage in found.stages])]
    for stage in found.stages:
        if stage.stands_still:
            lines.append(f"{stage.stage}: {stage.stands_still}")
        if stage.headline is not None:
            lines.append(f"{stage.stage} {stage.headline}: {stage.headline_value:.4g}")
        if stage.held_out:
            lines.append(f"{stage.stage}: held out {_values(stage.held_out)}")
        if stage.ended:
            verb = "done" if stage.state == "done" else "stopped"
            lines.append(f"{stage.stage} {verb}: {stage.ended}")
        if stage.on_old_weights:
            anew = command("train", f"{found.run}/{RECIPE}", "--redo-later")
            lines.append(
                f"{stage.stage} rests on the old weights of {stage.on_old_weights}; to train it "
                f"anew: {anew}"
            )
        if stage.problem:
            lines.append(f"{stage.stage}: {stage.problem}")
    if found.evaluation:
        lines.append(f"last evaluation on photos: {_values(found.evaluation)}")
    lines.append(f"Review: {review_of(found.run)}")
    if found.done:
        lines += [f"Next: {command('upscale', 'PHOTO', '-o', 'OUT.png', '--model', found.run)}"]
    return VerbResult({**found.model_dump(mode="json"), "review": review_of(found.run)}, lines)


def _values(metrics: Mapping[str, float]) -> str:
    """`psnr_x4_nfe1 27.1, ...`, without the group that all are of."""
    return ", ".join(f"{name.partition('/')[2]} {value:.4g}" for name, value in metrics.items())


def comparison_report(found: RunComparison) -> VerbResult:
    """Several training runs, a column each."""
    names = _short_names([run.run for run in found.runs])
    lines: list[str] = []
    for start in range(0, len(found.runs), RUNS_ABREAST):
        runs = found.runs[start : start + RUNS_ABREAST]
        rows = [*_run_rows(runs), *_quality_rows(runs), *_setting_rows(runs, found.settings)]
        lines += table(("", *(names[run.run] for run in runs)), rows)
        lines.append("")
    if not found.settings:
        lines.insert(-1, "No setting differs.")
    if found.left_out:
        lines.append(f"Left out {counted(len(found.left_out), 'run')}:")
        lines += [f"  {one.reason}" for one in found.left_out]
    lines.append(f"Next: {command('review', *(run.run for run in found.runs[:RUNS_ABREAST]))}")
    return VerbResult(found.model_dump(mode="json"), lines, ok=not found.left_out)


def _short_names(runs: Sequence[str]) -> dict[str, str]:
    """Each run's folder without what all have in common."""
    base = os.path.commonpath([Path(run).parent for run in runs])
    return {run: str(Path(run).relative_to(base)) for run in runs}


def _run_rows(runs: Sequence[RunStatus]) -> list[tuple[str, ...]]:
    stages = [run.current for run in runs]
    known = {stage.on_gpus for run in runs for stage in run.stages} - {None}
    hours = "GPU hours" if known == {True} else "worker hours"
    return [
        ("state", *(stage.state for stage in stages)),
        ("stage", *(stage.stage for stage in stages)),
        ("step", *(f"{stage.step}/{stage.steps}" for stage in stages)),
        ("step of all stages", *(f"{run.step}/{run.steps}" for run in runs)),
        ("left", *(_cell(stage.seconds_left, duration) for stage in stages)),
        ("headline", *(_headline(stage) for stage in stages)),
        ("images/s", *(_cell(stage.images_per_second, "{:.1f}".format) for stage in stages)),
        (hours, *(_cell(run.worker_hours, "{:.4g}".format) for run in runs)),
        ("restarts", *(str(sum(stage.restarts for stage in run.stages)) for run in runs)),
    ]


def _headline(stage: StageStatus) -> str:
    return "-" if stage.headline is None else f"{stage.headline} {stage.headline_value:.4g}"


def _quality_rows(runs: Sequence[RunStatus]) -> list[tuple[str, ...]]:
    """The last validation while training, and the last evaluation of the model."""
    groups = {
        "held out": [run.held_out for run in runs],
        "last evaluation on photos": [run.evaluation for run in runs],
    }
    return [
        row
        for heading, found in groups.items()
        for row in _under(
            heading,
            [
                (name, *(_cell(metrics.get(name), "{:.4g}".format) for metrics in found))
                for name in sorted({name for metrics in found for name in metrics})
            ],
        )
    ]


def _setting_rows(
    runs: Sequence[RunStatus], settings: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, ...]]:
    return _under(
        "settings that differ",
        [
            (name, *(_cell(values.get(run.run), _shortened) for run in runs))
            for name, values in settings.items()
        ],
    )


def _under(heading: str, rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows below a row that only names them."""
    return [(heading,), *((f"  {name}", *cells) for name, *cells in rows)] if rows else []


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 3]}..."


def _cell(value: Found | None, text: Callable[[Found], str]) -> str:
    return "-" if value is None else text(value)


def _contents(manifest: Manifest) -> str:
    samples, shards = counted(manifest.num_samples, "sample"), counted(manifest.num_shards, "shard")
    return f"{samples} in {shards}, {filesize.decimal(manifest.bytes)}"


def _summary(manifest: Manifest) -> dict[str, Any]:
    fields = {"recipe_digest", "codec", "num_samples", "num_shards", "bytes", "rejected"}
    return {"digest": manifest.digest, **manifest.model_dump(mode="json", include=fields)}


def _stage_cells(stage: StageStatus) -> tuple[str, ...]:
    age = stage.checkpoint_age_seconds
    return (
        stage.stage,
        stage.state,
        f"{stage.step}/{stage.steps}",
        _cell(stage.images_per_second, "{:.1f}".format),
        _cell(stage.seconds_left, duration),
        "-" if age is None else f"step {stage.checkpoint_step}, {duration(age)} ago",
        str(stage.restarts),
    )
