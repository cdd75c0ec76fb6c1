"""The command line `flowmapsr`: every command reads its words, calls one function and reports.

Imports nothing heavy at the top, so that `--help` and mistakes are answered at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pipelines import environment
from pipelines.benchmark_cli import benchmark_app
from pipelines.dataset_cli import dataset_app
from pipelines.model_cli import evaluate
from pipelines.servers import PREFECT, RAY, ask_servers
from pipelines.stack_cli import stack_app
from pipelines.terminal import reports
from pipelines.terminal.doing import doing
from pipelines.terminal.options import (
    AsJson,
    Commands,
    DryRun,
    Flow,
    PlainUsage,
    RecipeName,
    Settings,
)
from pipelines.terminal.process_edge import VerbResult, process_edge
from pipelines.train_cli import run, train
from pipelines.upscale_cli import upscale

app = typer.Typer(
    cls=Commands,
    help="From photos to a trained, reviewed, deployable super-resolution model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in the help are brackets
)
app.add_typer(dataset_app, help="Make and check datasets.")
app.add_typer(benchmark_app, name="benchmark", help="Compare models, as papers do.")
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
    system: Annotated[
        Literal["flowmapsr", "elir"], typer.Option(help="What it trains.")
    ] = "flowmapsr",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Go from photos to an upscaled picture, in minutes on a CPU.

    \b
    Example:
      flowmapsr demo --system elir --output elir-demo
    """
    with process_edge(as_json=as_json) as out:
        await_servers = ask_servers(RAY, PREFECT)
        from pipelines.demo import DEMOS, demo_recipe, run_demo

        recipe = demo_recipe(output, DEMOS[system])
        if dry_run:
            return out.say_recipe(recipe)
        report = run_demo(recipe, check_servers=await_servers)
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


app.command(cls=PlainUsage)(train)
app.command(cls=PlainUsage)(run)
app.command(cls=PlainUsage)(evaluate)
app.command(cls=PlainUsage)(upscale)


@app.command(cls=PlainUsage)
def deploy(
    recipe: RecipeName,
    settings: Settings = None,
    flow: Annotated[
        Flow, typer.Option(help="Part of the recipe to run; full is dataset, training, evaluation.")
    ] = "dataset",
    cron: Annotated[str | None, typer.Option(help="Schedule, such as '0 3 * * *'.")] = None,
    interval: Annotated[str | None, typer.Option(help="Time between runs, such as 6h.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of the schedule.")] = "UTC",
    pool: Annotated[str, typer.Option(help="Work pool; created if missing.")] = "flowmapsr",
    now: Annotated[bool, typer.Option("--now", help="Also start a run at once.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Register a recipe with Prefect, to run on a schedule.

    Without a schedule it runs on demand. Run it again to change it.

    \b
    Examples:
      flowmapsr deploy demo sources=[s3://b/in] output=s3://b/set --interval 6h
      flowmapsr deploy demo --flow training manifest=s3://b/set output=/runs/one
      flowmapsr deploy table3 --flow benchmark models=[/r] photos=/p output=/b
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import RECIPE_OF_FLOW

        resolved = RECIPE_OF_FLOW[flow](recipe, settings or [])
        await_server = ask_servers(PREFECT, tracked=False)
        from pipelines.flows.deployable import FLOWS
        from pipelines.orchestration import deployments

        schedule = deployments.parse_schedule(cron, interval, timezone)
        if dry_run:
            return out.say_recipe(resolved)
        await_server()
        doing("registering it with Prefect")
        result = deployments.deploy(FLOWS[flow], resolved, schedule=schedule, pool=pool, now=now)
        out.say(reports.deployed(result))


@app.command(cls=PlainUsage)
def status(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN | DATASET", help="Folders of training runs, or of several; or a dataset."
        ),
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Show every change until it ends.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a training's or build's progress, or compare trainings.

    Several are shown side by side, with the settings that differ. With --watch the exit code is 0
    only if all is done at its end; it waits ten minutes for something to begin.

    \b
    Examples:
      flowmapsr status /data/run
      flowmapsr status /data/run --watch
      flowmapsr status /data/first /data/second
    """
    with process_edge(as_json=as_json) as out:
        from pipelines.recipes.load import absolute_location
        from pipelines.terminal import live_status

        absolute = [absolute_location(place, field="RUN | DATASET") for place in places]
        if not watch:
            return out.say(live_status.look_at(absolute)().result)
        out.say(live_status.watch(live_status.await_begin(absolute)))


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
        from training.tracking.review.chosen import chosen
        from training.tracking.review.page import Review, make_review

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
