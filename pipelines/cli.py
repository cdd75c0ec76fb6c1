"""The command line `flowmapsr`: every command reads its words, calls one function and reports.

Imports nothing heavy at the top, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from datagen.errors import FlowmapsrError
from pipelines import environment
from pipelines.dataset_cli import dataset_app
from pipelines.servers import PREFECT, RAY, ask_servers, check_servers
from pipelines.stack_cli import stack_app
from pipelines.terminal import reports, status_report
from pipelines.terminal.doing import doing
from pipelines.terminal.options import (
    AsJson,
    Cluster,
    Commands,
    DryRun,
    Flow,
    Guidance,
    LoraScale,
    NewerData,
    PlainUsage,
    Precision,
    RecipeName,
    RedoLater,
    Settings,
    TakeOver,
)
from pipelines.terminal.process_edge import VerbResult, process_edge

app = typer.Typer(
    cls=Commands,
    help="From photos to a trained, reviewed, deployable super-resolution model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in the help are brackets
)
app.add_typer(dataset_app, help="Make and check datasets.")
app.add_typer(stack_app, help="Run MLflow, Prefect, Ray, S3 and Postgres here.")


def main() -> None:
    """Entry point of the `flowmapsr` command."""
    environment.prepare_environment()
    environment.leave_run_logs_to_prefect()
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"flowmapsr {version('flowmapsr')}")
        raise typer.Exit


_Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
]


@app.callback()
def _options(version: _Version = False) -> None:
    pass


@app.command(cls=PlainUsage)
def demo(
    output: Annotated[str, typer.Option(help="Folder for everything it makes.")] = "demo-output",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Go from photos to an upscaled picture, in minutes on a CPU."""
    with process_edge(as_json=as_json) as out:
        await_servers = ask_servers(RAY, PREFECT)
        from pipelines.demo import demo_recipe, run_demo

        recipe = demo_recipe(output)
        if dry_run:
            return out.say_recipe(recipe)
        report = run_demo(output, check_servers=await_servers)
        result = VerbResult(report.model_dump(mode="json"), report.lines())
        out.say(reports.with_unsent(result, recipe.training))


@app.command(cls=PlainUsage)
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Show this recipe's settings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes, or the settings of one.

    Each with its value, meaning, type, default, and whether it may change.

    \b
    Examples:
      flowmapsr recipes
      flowmapsr recipes flowmapsr-small
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes import catalog, catalog_report

        if name is None:
            return out.say(catalog_report.recipes_listed(catalog.summaries()))
        found = catalog.settings_of(name)
        out.say(catalog_report.recipe_described(catalog.summary(name), found))


def _require_address(cluster: bool) -> None:
    if cluster and not os.environ.get("RAY_ADDRESS"):
        raise FlowmapsrError(
            "--cluster: RAY_ADDRESS is not set; set it to the address of the head node, such "
            "as 10.0.0.1:6379, or leave --cluster out to work on this machine"
        )


@app.command(cls=PlainUsage)
def train(
    recipe: RecipeName,
    settings: Settings = None,
    cluster: Cluster = False,
    dry_run: DryRun = False,
    take_over: TakeOver = False,
    newer_data: NewerData = False,
    redo_later: RedoLater = False,
    as_json: AsJson = False,
) -> None:
    """Train the stages of a recipe on a dataset.

    Run it again to continue from the last checkpoint, or with more steps to train further. A
    training keeps the photos that it began with when its dataset grows; --newer-data takes up the
    new ones at the next stage.

    \b
    Examples:
      flowmapsr train demo manifest=/data/set output=/data/run workers=2
      flowmapsr train demo manifest=/data/set output=/run stages.warmup.steps=900
    """
    with process_edge(as_json=as_json) as out:
        _require_address(cluster)
        from pipelines.recipes.load import training_recipe

        resolved = training_recipe(recipe, settings or [])
        if dry_run:
            return out.say_recipe(resolved)
        await_servers = ask_servers(RAY, PREFECT)
        from training.preflight import check_run

        check_run(resolved, newer_data=newer_data)  # refuses before any server starts
        from training.run_dir.paths import finished_stages
        from training.run_dir.recipe_guard import asks_for_more

        records = finished_stages(resolved)
        if records is None or asks_for_more(resolved, redo_later=redo_later):
            from pipelines.preflight import check_place, check_surroundings

            environment.default_tracking_uri(resolved.output)
            await_servers()
            check_surroundings()
            check_place(resolved, take_over=take_over)
            doing("loading the libraries")
            from pipelines.flows.training import train as train_flow
            from pipelines.flows.training import train_stages
            from pipelines.orchestration.guard import guarded

            trains = partial(
                train_stages,
                resolved,
                take_over=take_over,
                newer_data=newer_data,
                redo_later=redo_later,
            )
            records = guarded(train_flow, resolved, trains)
        else:
            from training.tracking.parent_run import flush_pending

            environment.default_tracking_uri(resolved.output)
            flush_pending(resolved)
        result = reports.trained(resolved, records)
        out.say(reports.with_unsent(result, resolved))


@app.command(cls=PlainUsage)
def run(
    recipe: RecipeName,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, such as training.workers=2."),
    ] = None,
    cluster: Cluster = False,
    dry_run: DryRun = False,
    newer_data: NewerData = False,
    as_json: AsJson = False,
) -> None:
    """Make a dataset, train on it, evaluate the model.

    All of it goes below one output. Run it again to continue where it stopped.

    \b
    Example:
      flowmapsr run demo output=OUT dataset.sources=[A] evaluation.photos=B
    """
    with process_edge(as_json=as_json) as out:
        _require_address(cluster)
        from pipelines.recipes.load import full_recipe, require_photos, require_sources

        resolved = full_recipe(recipe, settings or [])
        if dry_run:
            return out.say_recipe(resolved)
        await_servers = ask_servers(RAY, PREFECT)
        require_sources(resolved.dataset, section="dataset")
        require_photos(resolved.evaluation)
        from training.run_dir.recipe_guard import check_recipe

        check_recipe(resolved.training)  # before the dataset is built, not after
        from pipelines.preflight import check_dataset, check_place, check_surroundings

        environment.default_tracking_uri(resolved.output)
        await_servers()
        check_surroundings()
        check_place(resolved.training)
        check_dataset(resolved.dataset)
        doing("loading the libraries")
        from pipelines.flows.full import full, make_all
        from pipelines.orchestration.guard import guarded

        record = guarded(full, resolved, partial(make_all, resolved, newer_data=newer_data))
        result = reports.all_done(resolved.training, record.rows, record.seconds)
        out.say(reports.with_unsent(result, resolved.training))


@app.command(cls=PlainUsage)
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a model or training run.")
    ],
    photos: Annotated[str, typer.Option(help="Folder of photos that were not trained on.")],
    scales: Annotated[str, typer.Option(help="Factors to downscale by.")] = "4,8",
    steps: Annotated[str, typer.Option(help="Numbers of network evaluations.")] = "1,2,4",
    lora_scale: LoraScale = None,
    guidance: Guidance = None,
    precision: Precision = "auto",
    track: Annotated[
        bool, typer.Option("--track", help="Log the results to the training's MLflow run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore degraded photos and compare with the originals.

    Bicubic interpolation is compared too.

    \b
    Examples:
      flowmapsr evaluate /data/run --photos /held-out --scales 4,8 --steps 1,2
      flowmapsr evaluate /data/run --photos /held-out --track
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import absolute_location, evaluation_settings

        factors, counts = scales.split(","), steps.split(",")
        settings = evaluation_settings(
            photos,
            scales=factors,
            steps=counts,
            lora_scale=lora_scale,
            guidance=guidance,
            precision=precision,
        )
        location = absolute_location(model, field="MODEL")
        from training.tracking.evaluation_log import finished_training, log_evaluation

        training = finished_training(location) if track else None
        if training is not None:
            environment.default_tracking_uri(location)
            check_servers()
        doing("evaluating")
        from training.evaluation.evaluate import evaluate as evaluate_model

        rows = evaluate_model(location, settings)
        result = reports.evaluated(location, rows)
        if training is not None:
            log_evaluation(training, settings, rows)
            result = reports.with_unsent(result, training)
        out.say(result)


@app.command(cls=PlainUsage)
def upscale(
    source: Annotated[Path, typer.Argument(metavar="PHOTOS", help="A photo, or a folder of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")],
    scale: Annotated[float, typer.Option(min=1, max=16, help="Factor to enlarge by.")] = 4.0,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations.")] = 2,
    model: Annotated[str | None, typer.Option(help="Folder of a model or training run.")] = None,
    lora_scale: LoraScale = None,
    guidance: Guidance = None,
    precision: Precision = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output files.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Make only missing outputs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Enlarge a photo, or every photo of a folder.

    \b
    Example:
      flowmapsr upscale photo.jpg -o large.png --scale 4 --model /data/run
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import at_home
        from pipelines.terminal.progress import show_progress
        from training.inference.files import default_model, plan_jobs, upscale_all

        source, output = at_home(source, field="PHOTOS"), at_home(output, field="--output")
        jobs = plan_jobs(source, output, overwrite=overwrite, skip_existing=skip_existing)
        with show_progress("upscale", total=len(jobs), unit="images") as progress:
            report = upscale_all(
                jobs,
                model or default_model(),
                scale=scale,
                steps=steps,
                lora_scale=lora_scale,
                guidance=guidance,
                precision=precision,
                on_done=lambda source: progress.advance(note=source.name),
            )
        out.say(reports.upscaled(str(output), scale, report))


@app.command(cls=PlainUsage)
def deploy(
    recipe: RecipeName,
    settings: Settings = None,
    flow: Annotated[
        Flow, typer.Option(help="Part of the recipe to run; full is all of it.")
    ] = "dataset",
    cron: Annotated[str | None, typer.Option(help="Schedule, such as '0 3 * * *'.")] = None,
    interval: Annotated[str | None, typer.Option(help="Time between runs, such as 6h.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of the schedule.")] = "UTC",
    pool: Annotated[str, typer.Option(help="Work pool; created if missing.")] = "flowmapsr",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Register a recipe with Prefect, to run on a schedule.

    Without a schedule it runs on demand. Run it again to change it.

    \b
    Examples:
      flowmapsr deploy demo sources=[s3://b/in] output=s3://b/set --interval 6h
      flowmapsr deploy demo --flow training manifest=s3://b/set output=/runs/one
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import RECIPE_OF_FLOW

        resolved = RECIPE_OF_FLOW[flow](recipe, settings or [])
        await_server = ask_servers(PREFECT, tracked=False)
        from pipelines.flows.full import FLOWS
        from pipelines.orchestration import deployments

        schedule = deployments.parse_schedule(cron, interval, timezone)
        if dry_run:
            return out.say_recipe(resolved)
        await_server()
        doing("registering it with Prefect")
        result = deployments.deploy(FLOWS[flow], resolved, schedule=schedule, pool=pool)
        out.say(reports.deployed(result))


@app.command(cls=PlainUsage)
def status(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Folders of training runs, or a folder of several."),
    ],
    as_json: AsJson = False,
) -> None:
    """Show a training's progress, or compare several trainings.

    Several are shown side by side, with the settings that differ.

    \b
    Examples:
      flowmapsr status /data/run
      flowmapsr status /data/first /data/second
    """
    with process_edge(as_json=as_json) as out:
        from training.tracking.status import compare_runs, find_runs, run_status

        found = find_runs(runs)
        if len(found) == 1:
            return out.say(status_report.one_run(run_status(found[0])))
        out.say(status_report.several_runs(compare_runs(found)))


@app.command(cls=PlainUsage)
def review(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN | EXPERIMENT", help="Folders of runs, or an experiment."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0: a free one.")
    ] = 0,
    serve: Annotated[
        bool, typer.Option("--serve/--no-serve", help="Show a database that has no server.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Compare trainings on a page of MLflow.

    Where MLflow is a database without a server, it serves the page until Ctrl-C.

    \b
    Examples:
      flowmapsr review /data/run
      flowmapsr review /data/first /data/second
      flowmapsr review datasets
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.terminal.review_report import experiments_listed, reviewed
        from training.tracking.review import Review, chosen, make_review

        place = chosen(what or [])
        found = make_review(place)
        if not isinstance(found, Review):
            return out.say(experiments_listed(found))
        if as_json or not serve or found.has_address:
            return out.say(reviewed(found))
        from pipelines.terminal.mlflow_page import serve_page

        serve_page(
            place.uri,
            port=port,
            on_ready=lambda base: print(*reviewed(found.at(base)).lines, sep="\n"),
        )


if __name__ == "__main__":
    main()
