"""The commands `flowmapsr benchmark ...`: one for each recipe that comes with the package, one for
a recipe of one's own, and the speed of ELIR's parts. Imports nothing heavy at the top, like
`cli.py`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines import environment
from pipelines.recipes.benchmark_names import bundled_benchmarks
from pipelines.servers import PREFECT, RAY, ask_servers, require_cluster_address
from pipelines.terminal.doing import doing
from pipelines.terminal.options import (
    AsJson,
    Cluster,
    DryRun,
    PlainUsage,
    Precision,
    RecipeName,
    Settings,
)
from pipelines.terminal.process_edge import process_edge

OWN = "RECIPE"
"""The command that any other word stands for: the path of a recipe."""


class Benchmarks(TyperGroup):
    """Its commands, and recipes by their paths."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, OWN)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The word itself is the first argument of the command for recipes of one's own."""
        name, command, rest = super().resolve_command(ctx, args)
        known = args[0] in self.commands and args[0] != OWN
        return (name, command, rest) if known else (OWN, command, [args[0], *rest])


benchmark_app = typer.Typer(cls=Benchmarks, no_args_is_help=True, rich_markup_mode=None)


@benchmark_app.callback()
def _group() -> None:
    pass


def _make(name: str, purpose: str) -> None:
    """Adds the command of a recipe."""

    def command(
        settings: Settings = None,
        cluster: Cluster = False,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        _benchmark(name, settings, cluster=cluster, dry_run=dry_run, as_json=as_json)

    photos = "" if name == "table1" else "photos=/held-out "
    command.__doc__ = f"""{purpose}

    Run it again to continue where it stopped. The report is in the output.

    \b
    Example:
      flowmapsr benchmark {name} models=[/run] {photos}output=/out
    """
    benchmark_app.command(name, cls=PlainUsage)(command)


for _name, _purpose in bundled_benchmarks().items():
    _make(_name, _purpose)


@benchmark_app.command(OWN, cls=PlainUsage)
def own(
    recipe: RecipeName,
    settings: Settings = None,
    cluster: Cluster = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Compare models by a recipe of your own.

    Run it again to continue where it stopped. Write the recipe's path for RECIPE.

    \b
    Example:
      flowmapsr benchmark ./mine.yaml models=[/runs/a,/runs/b] output=/out
    """
    _benchmark(recipe, settings, cluster=cluster, dry_run=dry_run, as_json=as_json)


def _benchmark(
    recipe: str, settings: list[str] | None, *, cluster: bool, dry_run: bool, as_json: bool
) -> None:
    with process_edge(as_json=as_json) as out:
        require_cluster_address(cluster)
        from pipelines.recipes.load import benchmark_recipe, require_photos

        resolved = benchmark_recipe(recipe, settings or [])
        if dry_run:
            return out.say_recipe(resolved)
        await_servers = ask_servers(RAY, PREFECT)
        require_photos(resolved, section="")
        from datagen.io import storage
        from pipelines.preflight import check_surroundings
        from training.evaluation.results import RESULTS, SUMMARY, require_place
        from training.weights.model_folder import find_model

        for one in resolved.models:
            find_model(one.folder)
        require_place(f"{resolved.output}/{RESULTS}")
        environment.default_tracking_uri(resolved.output)
        from pipelines.terminal.benchmark_report import benchmarked

        # It is written last: without one something is left to do.
        if storage.exists(storage.join(resolved.output, SUMMARY)):
            doing("looking for what is left to do")
            from training.evaluation.report.benchmark_results import finished_benchmark

            if (record := finished_benchmark(resolved)) is not None:
                return out.say(benchmarked(resolved, record))
        await_servers()
        check_surroundings()
        doing("loading the libraries")
        from pipelines.flows.benchmark import benchmark
        from pipelines.orchestration.guard import guarded

        out.say(benchmarked(resolved, guarded(benchmark, resolved)))


def _multiple_of_32(value: int) -> int:
    if value % 32:
        raise typer.BadParameter(f"{value} is no multiple of 32, which ELIR needs; try 128 or 256")
    return value


@benchmark_app.command("elir-speed", cls=PlainUsage)
def elir_speed(
    width: Annotated[
        int, typer.Option(min=32, callback=_multiple_of_32, help="Channels of the field.")
    ] = 128,
    middle_blocks: Annotated[int, typer.Option(min=1, help="Its blocks in the middle.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Of the field, for one image.")] = 3,
    side: Annotated[
        int, typer.Option(min=32, callback=_multiple_of_32, help="Of an image, pixels.")
    ] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    precision: Precision = "auto",
    calls: Annotated[
        int | None, typer.Option(min=1, help="Timed calls. [default: 200 on a GPU, else 10]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show size, operations and speed of ELIR's parts.

    The networks have random weights, which change none of it. The table is also logged to MLflow.

    \b
    Examples:
      flowmapsr benchmark elir-speed
      flowmapsr benchmark elir-speed --middle-blocks 3 --steps 5 --side 512
    """
    with process_edge(as_json=as_json) as out:
        from dataclasses import asdict

        import torch

        from pipelines.terminal.benchmark_report import elir_speed as shown
        from training.elir.speed import SpeedSettings, measure_speed
        from training.evaluation.hardware import hardware
        from training.restorer_protocol import LoadOptions
        from training.tracking.benchmark_run import log_benchmark

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = LoadOptions(precision=precision).dtype(device) == torch.bfloat16
        calls = calls or (200 if device.type == "cuda" else 10)
        settings = SpeedSettings(width, middle_blocks, steps, side, batch, bf16, calls)
        doing("timing ELIR")
        rows = measure_speed(settings, device)
        values = {
            f"{row.part}/{name}": float(getattr(row, name))
            for row in rows
            for name in ("parameters", "trained_parameters", "gflop", "images_per_second")
        }
        described = {**asdict(settings), "hardware": hardware()}
        logged = log_benchmark("elir-speed", described, values)
        out.say(shown(described, [asdict(row) for row in rows], logged))
