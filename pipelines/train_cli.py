"""The commands `flowmapsr train` and `flowmapsr run`.

Imports nothing heavy at the top, like `cli.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from pipelines import environment
from pipelines.servers import PREFECT, RAY, ask_servers, require_cluster_address
from pipelines.terminal import reports
from pipelines.terminal.doing import doing
from pipelines.terminal.options import (
    AsJson,
    Cluster,
    DryRun,
    NewerData,
    RecipeName,
    RedoLater,
    Settings,
    TakeOver,
)
from pipelines.terminal.process_edge import process_edge
from training.monitoring.json_log import at_work_on


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
        require_cluster_address(cluster)
        from pipelines.recipes.load import training_recipe

        resolved = training_recipe(recipe, settings or [])
        at_work_on(run=resolved.output, dataset=resolved.datasets_label)
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
        require_cluster_address(cluster)
        from pipelines.recipes.load import full_recipe, require_photos, require_sources

        resolved = full_recipe(recipe, settings or [])
        at_work_on(run=resolved.training.output, dataset=resolved.dataset.output)
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
        result = reports.all_done(resolved.training, record.rows, record.seconds, resolved.report)
        out.say(reports.with_unsent(result, resolved.training))
