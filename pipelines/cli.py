"""The command line `flowmapsr`: every verb reads its words, calls one function and reports.

Imports nothing heavy at its top, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from datagen.errors import FlowmapsrError
from pipelines.environment import (
    default_tracking_uri,
    leave_run_logs_to_prefect,
    prepare_environment,
)
from pipelines.terminal import reports
from pipelines.terminal.process_edge import VerbResult, process_edge

app = typer.Typer(
    help="From photos to a trained, reviewed, deployable super-resolution model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in the help are brackets
)
dataset_app = typer.Typer(
    help="Make and check datasets.", no_args_is_help=True, rich_markup_mode=None
)
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
Dataset = Annotated[str, typer.Argument(metavar="URI", help="The dataset, or its manifest.json.")]
LoraScale = Annotated[
    float | None,
    typer.Option(min=0, help="Strength of an adversarial model's LoRA; its own when not given."),
]
Guidance = Annotated[
    float | None,
    typer.Option(min=0, help="Guidance strength, 1 is none; the model's own when not given."),
]
Flow = Literal["dataset", "training", "full"]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the resolved recipe.")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Take the output from another command, even alive.")
]


def main() -> None:
    """Entry point of the `flowmapsr` command."""
    prepare_environment()
    leave_run_logs_to_prefect()
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"flowmapsr {version('flowmapsr')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Folder for all it makes.")] = "demo-output",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole way, photos to upscaled picture, on photos that come with two libraries."""
    with process_edge(as_json=as_json) as out:
        from pipelines.demo import demo_recipe, run_demo

        if dry_run:
            return out.say_recipe(demo_recipe(output).model_dump(mode="json"))
        report = run_demo(output)
        out.say(VerbResult(report.model_dump(mode="json"), report.lines()))


@dataset_app.command("build")
def dataset_build(
    recipe: RecipeName,
    settings: Settings = None,
    dry_run: DryRun = False,
    take_over: TakeOver = False,
    as_json: AsJson = False,
) -> None:
    """Turn photos into shards of latents. Run it again to continue, or to add new photos.

    Example: flowmapsr dataset build demo sources=[/photos] output=/data/set workers=2
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import dataset_recipe, require_sources

        resolved = dataset_recipe(recipe, settings or [])
        if dry_run:
            return out.say_recipe(resolved.model_dump(mode="json"))
        require_sources(resolved)
        from datagen.build.survey import survey
        from datagen.photos.sources import list_sources

        listing = list_sources(resolved.sources, exclude=resolved.output)
        found = survey(resolved, listing)
        if found.complete is not None:
            how = "was complete already"
            return out.say(reports.built(resolved.output, found.complete, found, how=how))
        from pipelines.flows.dataset import build_dataset, build_listed
        from pipelines.orchestration.guard import guarded

        manifest = guarded(
            build_dataset, resolved, lambda: build_listed(resolved, listing, take_over=take_over)
        )
        out.say(reports.built(resolved.output, manifest, found, how="is complete"))


@dataset_app.command("inspect")
def dataset_inspect(
    uri: Dataset,
    key: Annotated[str | None, typer.Option(help="A sample's key, or how it begins.")] = None,
    output: Annotated[str, typer.Option(help="Folder for the pictures of --key.")] = ".",
    as_json: AsJson = False,
) -> None:
    """Say what a dataset holds. With --key, decode one of its samples into PNG files."""
    with process_edge(as_json=as_json) as out:
        from datagen.dataset.manifest import open_dataset
        from pipelines.recipes.load import absolute_location

        manifest, place = open_dataset(absolute_location(uri, field="URI"))
        if key is None:
            return out.say(reports.inspected(place, manifest))
        from datagen.review.inspect_sample import inspect_sample, save_pictures

        sample = inspect_sample(place, key)
        files = save_pictures(sample, absolute_location(output, field="--output"))
        out.say(reports.sample_inspected(place, sample, files))


@dataset_app.command("verify")
def dataset_verify(uri: Dataset, as_json: AsJson = False) -> None:
    """Read every byte of a dataset and compare it with its manifest; exit code 1 on any fault."""
    with process_edge(as_json=as_json) as out:
        from datagen.dataset.manifest import open_dataset
        from datagen.review.verify import verify_dataset
        from pipelines.recipes.load import absolute_location
        from pipelines.terminal.progress import show_progress

        dataset = absolute_location(uri, field="URI")
        try:
            total = open_dataset(dataset).manifest.num_shards
        except FlowmapsrError:  # a fault, which the verification names
            return out.say(reports.verified(dataset, verify_dataset(dataset)))
        with show_progress("verify", total=total, unit="shards") as progress:
            faults = verify_dataset(dataset, on_shard=lambda done, _: progress.reach(done))
        out.say(reports.verified(dataset, faults))


@app.command()
def train(
    recipe: RecipeName,
    settings: Settings = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Only on the Ray cluster that RAY_ADDRESS names.")
    ] = False,
    dry_run: DryRun = False,
    take_over: TakeOver = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's stages on a dataset. Run it again to continue from the last checkpoint.

    Example: flowmapsr train demo manifest=/data/set/manifest.json output=/data/run workers=2
    """
    with process_edge(as_json=as_json) as out:
        if cluster:
            from pipelines.environment import require_cluster

            require_cluster()
        from pipelines.recipes.load import training_recipe

        resolved = training_recipe(recipe, settings or [])
        if dry_run:
            return out.say_recipe(resolved.model_dump(mode="json"))
        from training.preflight import check_run

        check_run(resolved)  # what cannot work is answered before any server starts
        from training.run_dir.paths import finished_stages

        records = finished_stages(resolved)
        if records is None:
            from pipelines.flows.training import train as train_flow
            from pipelines.flows.training import train_stages
            from pipelines.orchestration.guard import guarded

            records = guarded(
                train_flow, resolved, lambda: train_stages(resolved, take_over=take_over)
            )
        else:
            from training.tracking.parent_run import tell_the_rest

            default_tracking_uri(resolved.output)
            tell_the_rest(resolved)
        from training.tracking.mlflow_client import run_page

        page = run_page(Path(resolved.output))
        out.say(reports.trained(resolved.output, records, page=page))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder or a run folder.")],
    photos: Annotated[str, typer.Option(help="Folder of photos the model has never seen.")],
    scales: Annotated[str, typer.Option(help="Downscale factors, with commas.")] = "4,8",
    steps: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = "1,2,4",
    lora_scale: LoraScale = None,
    guidance: Guidance = None,
    as_json: AsJson = False,
) -> None:
    """Degrade held-out photos, restore them, and compare with the originals and with bicubic."""
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import absolute_location, evaluation_settings

        settings = evaluation_settings(
            photos,
            scales=scales.split(","),
            steps=steps.split(","),
            lora_scale=lora_scale,
            guidance=guidance,
        )
        from training.evaluation.evaluate import evaluate as evaluate_model

        place = absolute_location(model, field="MODEL")
        out.say(reports.evaluated(place, evaluate_model(place, settings)))


@app.command()
def upscale(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="A photo, or a folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")],
    scale: Annotated[float, typer.Option(min=1, max=16, help="How many times larger.")] = 4.0,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations.")] = 2,
    model: Annotated[str | None, typer.Option(help="Model or run folder.")] = None,
    lora_scale: LoraScale = None,
    guidance: Guidance = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Make only the outputs not there yet.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Enlarge a photo, or every photo of a folder."""
    with process_edge(as_json=as_json) as out:
        from pipelines.terminal.progress import show_progress
        from training.inference.files import default_model, plan_jobs, upscale_all

        jobs = plan_jobs(source, output, overwrite=overwrite, skip_existing=skip_existing)
        with show_progress("upscale", total=len(jobs), unit="images") as progress:
            report = upscale_all(
                jobs,
                model or default_model(),
                scale=scale,
                steps=steps,
                lora_scale=lora_scale,
                guidance=guidance,
                on_done=lambda source: progress.advance(note=source.name),
            )
        out.say(reports.upscaled(str(output), scale, report))


@app.command()
def deploy(
    recipe: RecipeName,
    settings: Settings = None,
    flow: Annotated[
        Flow, typer.Option(help="What to run: the recipe's dataset, its training, or all of it.")
    ] = "dataset",
    cron: Annotated[str | None, typer.Option(help="When to run, such as '0 3 * * *'.")] = None,
    interval: Annotated[str | None, typer.Option(help="How often, such as 15m or 6h.")] = None,
    timezone: Annotated[str, typer.Option(help="In which the schedule is meant.")] = "UTC",
    pool: Annotated[str, typer.Option(help="Work pool, made if missing.")] = "flowmapsr",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Register a flow with its recipe on a Prefect server, to run when due or when told to.

    Run it again to change it. Examples:
    flowmapsr deploy demo sources=[s3://b/photos] output=s3://b/set --interval 6h;
    flowmapsr deploy demo --flow training manifest=s3://b/set output=/runs/one
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import recipe_of_flow

        resolved = recipe_of_flow(flow, recipe, settings or [])
        from pipelines.flows.deployables import deployable
        from pipelines.orchestration import deployments

        schedule = deployments.parse_schedule(cron, interval, timezone)
        if dry_run:
            return out.say_recipe(resolved.model_dump(mode="json"))
        target = deployable(resolved)
        out.say(reports.deployed(deployments.deploy(target, schedule=schedule, pool=pool)))


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="The folder of a training run, or of several.")],
    as_json: AsJson = False,
) -> None:
    """Say how far a training run has come, from what lies on disk."""
    with process_edge(as_json=as_json) as out:
        from training.tracking.status import find_runs, run_status

        found = [run_status(folder) for folder in find_runs(run)]
        one = len(found) == 1
        out.say(reports.run_stands(found[0]) if one else reports.runs_stand(run, found))


if __name__ == "__main__":
    main()
