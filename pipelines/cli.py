"""The command line `flowmapsr`: every verb reads its words, calls one function and says what came of it.

Imports nothing heavy at its top, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.console import Output, command, counted, human_bytes, process_edge, table
from pipelines.environment import prepare_environment

if TYPE_CHECKING:
    from datagen.manifest import Manifest
    from pipelines.status import StageStatus
    from training.records import EvaluationRow

app = typer.Typer(
    help="From photos to a trained, reviewed, deployable super-resolution model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
dataset_app = typer.Typer(help="Make and check datasets.", no_args_is_help=True)
app.add_typer(dataset_app, name="dataset")

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name, such as demo, or a YAML file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=VALUE]...", help="Settings over the recipe's, such as workers=2 seed=7."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the resolved recipe.")]


def main() -> None:
    """Entry point of the `flowmapsr` command."""
    prepare_environment()
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"flowmapsr {version('flowmapsr')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Folder for everything it makes.")] = "demo-output",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole way, photos to upscaled picture, on photos that come with two libraries."""
    with process_edge(as_json=as_json) as out:
        from pipelines.demo import demo_recipe, run_demo

        if dry_run:
            return out.resolved(demo_recipe(output).model_dump(mode="json"))
        report = run_demo(output)
        out.done(report.model_dump(mode="json"), report.lines())


@dataset_app.command("build")
def dataset_build(
    recipe: RecipeName,
    settings: Settings = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Turn photos into shards of latents. Run it again to continue, or to add new photos.

    Example: flowmapsr dataset build demo sources=[/photos] output=/data/set workers=2
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipe import dataset_recipe

        resolved = dataset_recipe(recipe, settings or [])
        if dry_run:
            return out.resolved(resolved.model_dump(mode="json"))
        from datagen.build import completed

        manifest = completed(resolved)
        if manifest is not None:
            return _say_built(out, resolved.output, manifest, how="was complete already")
        from pipelines.flows.dataset import build_dataset

        _say_built(out, resolved.output, build_dataset(resolved), how="is complete")


def _say_built(out: Output, output: str, manifest: Manifest, *, how: str) -> None:
    place = f"{output.rstrip('/')}/manifest.json"
    left_out = manifest.rejected.count
    lines = [
        f"The dataset {how}: {counted(manifest.num_samples, 'sample')} in "
        f"{counted(manifest.num_shards, 'shard')}, {human_bytes(manifest.bytes)}.",
        f"  manifest  {place}",
        f"  preview   {output.rstrip('/')}/preview.png",
        f"  left out  {counted(left_out, 'image')}" + (" (see rejected.jsonl)" if left_out else ""),
        f"Next: {command('train', 'demo', f'manifest={place}', 'output=RUN')}",
    ]
    out.done({"output": output, "manifest": place, **_summary(manifest)}, lines)


def _summary(manifest: Manifest) -> dict[str, Any]:
    fields = {"recipe_digest", "codec", "num_samples", "num_shards", "bytes", "rejected"}
    return {"digest": manifest.digest, **manifest.model_dump(mode="json", include=fields)}


@dataset_app.command("inspect")
def dataset_inspect(
    uri: Annotated[str, typer.Argument(help="The dataset, or its manifest.json.")],
    as_json: AsJson = False,
) -> None:
    """Say what a dataset holds and how it was made."""
    with process_edge(as_json=as_json) as out:
        from datagen.manifest import dataset_of, load_manifest
        from pipelines.recipe import absolute_location

        place = dataset_of(absolute_location(uri, field="URI"))
        manifest = load_manifest(place)
        counts: dict[tuple[str, str], int] = {}
        for shard in manifest.shards:
            key = (shard.bucket, shard.split)
            counts[key] = counts.get(key, 0) + shard.num_samples
        buckets = [
            {"bucket": bucket, "split": split, "num_samples": count}
            for (bucket, split), count in sorted(counts.items())
        ]
        rejected = [
            f"  {count} x {reason}" for reason, count in sorted(manifest.rejected.by_reason.items())
        ]
        lines = [
            f"{place}: {counted(manifest.num_samples, 'sample')} in "
            f"{counted(manifest.num_shards, 'shard')}, {human_bytes(manifest.bytes)}.",
            f"codec {manifest.codec.kind}, {manifest.codec.channels} channels, 1/"
            f"{manifest.codec.downsample} of the size; digest {manifest.digest[:12]}",
            *table(
                ("bucket", "split", "samples"),
                [
                    (str(row["bucket"]), str(row["split"]), str(row["num_samples"]))
                    for row in buckets
                ],
            ),
            f"left out: {counted(manifest.rejected.count, 'image')}",
            *rejected,
            f"Next: {command('dataset', 'verify', place)}",
        ]
        result = {"uri": place, **_summary(manifest), "buckets": buckets, "recipe": manifest.recipe}
        out.done(result, lines)


@dataset_app.command("verify")
def dataset_verify(
    uri: Annotated[str, typer.Argument(help="The dataset, or its manifest.json.")],
    as_json: AsJson = False,
) -> None:
    """Read every byte of a dataset and compare it with its manifest; exit code 1 on any fault."""
    with process_edge(as_json=as_json) as out:
        from datagen.verify import verify_dataset
        from pipelines.recipe import absolute_location

        place = absolute_location(uri, field="URI")
        faults = verify_dataset(place)
        result = {"ok": not faults, "faults": [fault.model_dump(mode="json") for fault in faults]}
        if faults:
            lines = [f"{place}: {counted(len(faults), 'fault')}"]
            lines += [f"  {fault.path}: {fault.problem}" for fault in faults]
            return out.failed(result, lines)
        next_step = command("train", "demo", f"manifest={place}", "output=RUN")
        out.done(result, [f"{place}: every shard is as its manifest says.", f"Next: {next_step}"])


@app.command()
def train(
    recipe: RecipeName,
    settings: Settings = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train the stages of a recipe on a dataset. Run it again to continue from the last checkpoint.

    Example: flowmapsr train demo manifest=/data/set/manifest.json output=/data/run workers=2
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipe import training_recipe

        resolved = training_recipe(recipe, settings or [])
        if dry_run:
            return out.resolved(resolved.model_dump(mode="json"))
        from pipelines.flows.training import train as train_stages

        records = train_stages(resolved)
        model = f"{resolved.output}/{records[-1].model}"
        lines = [f"Trained {counted(len(records), 'stage')} in {resolved.output}."]
        lines += [f"  {one.stage}: {one.steps} steps, {one.images_seen} images" for one in records]
        lines += [
            f"  model  {model}",
            f"Next: {command('upscale', 'PHOTO', '-o', 'OUT.png', '--model', resolved.output)}",
        ]
        stages = [record.model_dump(mode="json") for record in records]
        out.done({"run": resolved.output, "model": model, "stages": stages}, lines)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder or a run folder.")],
    photos: Annotated[str, typer.Option(help="Folder of photos the model was not trained on.")],
    scales: Annotated[str, typer.Option(help="Downscale factors, with commas.")] = "4,8",
    steps: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = "1,2,4",
    as_json: AsJson = False,
) -> None:
    """Degrade held-out photos, restore them, and compare with the originals and with bicubic."""
    with process_edge(as_json=as_json) as out:
        from pipelines.recipe import absolute_location, validated
        from training.settings import EvaluationSettings

        values = {
            "photos": absolute_location(photos, field="--photos"),
            "scales": [part.strip() for part in scales.split(",")],
            "steps": [part.strip() for part in steps.split(",")],
        }
        checked = validated(EvaluationSettings, values, title="--photos, --scales and --steps")
        from training.evaluation import evaluate as evaluate_model

        place = absolute_location(model, field="MODEL")
        rows = evaluate_model(place, checked)
        next_step = command("upscale", "PHOTO", "-o", "OUT.png", "--model", place)
        result = {"model": place, "rows": [row.model_dump(mode="json") for row in rows]}
        out.done(result, [*evaluation_table(rows), f"Next: {next_step}"])


def evaluation_table(rows: list[EvaluationRow]) -> list[str]:
    """Lines of the table that people compare methods by."""
    cells = [
        (row.method, f"x{row.scale:g}", str(row.steps or "-"), f"{row.psnr:.2f}", f"{row.ssim:.4f}",
         f"{row.seconds:.2f}")
        for row in rows
    ]  # fmt: skip
    return table(("method", "scale", "steps", "PSNR dB", "SSIM", "seconds"), cells)


@app.command()
def upscale(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="A photo, or a folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")],
    scale: Annotated[float, typer.Option(min=1, max=16, help="How many times larger.")] = 4.0,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations.")] = 2,
    model: Annotated[str | None, typer.Option(help="Model or run folder.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace outputs that exist.")] = False,
    skip_existing: Annotated[bool, typer.Option(help="Leave outputs that exist.")] = False,
    as_json: AsJson = False,
) -> None:
    """Enlarge a photo, or every photo of a folder."""
    with process_edge(as_json=as_json) as out:
        from pipelines.recipe import absolute_location
        from pipelines.upscaling import default_model, plan_jobs, upscale_all

        jobs = plan_jobs(source, output, overwrite=overwrite, skip_existing=skip_existing)
        place = absolute_location(model, field="--model") if model else default_model()
        if not jobs:
            return out.done({"written": [], "failed": []}, ["Every output is there already."])
        from training.upscaler import Upscaler

        from pipelines.progress import show_progress

        upscaler = Upscaler.from_pretrained(place)
        with show_progress("upscale", total=len(jobs), unit="images") as progress:
            report = upscale_all(
                jobs,
                lambda data: upscaler.upscale_file(data, scale=scale, steps=steps),
                on_done=lambda job: progress.advance(note=job.source.name),
            )
        failed = [{"file": str(path), "reason": reason} for path, reason in report.failed]
        result = {"written": [str(path) for path in report.written], "failed": failed}
        lines = [f"Upscaled {counted(len(report.written), 'image')} by {scale:g} to {output}."]
        if failed:
            lines += [f"Left out {counted(len(failed), 'image')}:"]
            lines += [f"  {path}: {reason}" for path, reason in report.failed]
            return out.failed(result, lines)
        out.done(result, lines)


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="The folder of a training run.")],
    as_json: AsJson = False,
) -> None:
    """Say how far a training run has come, from what lies on disk."""
    with process_edge(as_json=as_json) as out:
        from pipelines.status import run_status

        found = run_status(run)
        headings = ("stage", "state", "step", "images/s", "left", "last checkpoint")
        lines = [found.run, *table(headings, [_status_cells(stage) for stage in found.stages])]
        if found.done:
            next_step = command("upscale", "PHOTO", "-o", "OUT.png", "--model", found.run)
            lines.append(f"Next: {next_step}")
        out.done(found.model_dump(mode="json"), lines)


def _status_cells(stage: StageStatus) -> tuple[str, ...]:
    speed, left = stage.images_per_second, stage.seconds_left
    age = stage.checkpoint_age_seconds
    return (
        stage.stage,
        stage.state,
        f"{stage.step}/{stage.steps}",
        "-" if speed is None else f"{speed:.1f}",
        "-" if left is None else duration(left),
        "-" if age is None else f"step {stage.checkpoint_step}, {duration(age)} ago",
    )


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
