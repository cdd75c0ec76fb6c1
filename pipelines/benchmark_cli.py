"""The commands `flowmapsr benchmark ...`. Imports nothing heavy at the top, like `cli.py`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.terminal import reports
from pipelines.terminal.doing import doing
from pipelines.terminal.options import AsJson, PlainUsage, Precision
from pipelines.terminal.process_edge import process_edge

benchmark_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@benchmark_app.callback()
def _group() -> None:
    pass


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

        from training.elir.speed import SpeedSettings, measure_speed
        from training.system_protocol import LoadOptions
        from training.tracking.benchmark_run import log_benchmark

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = LoadOptions(precision=precision).dtype(device) == torch.bfloat16
        calls = calls or (200 if device.type == "cuda" else 10)
        settings = SpeedSettings(width, middle_blocks, steps, side, batch, bf16, calls)
        doing("timing ELIR")
        rows = measure_speed(settings, device)
        hardware = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        values = {
            f"{row.part}/{name}": float(getattr(row, name))
            for row in rows
            for name in ("parameters", "trained_parameters", "gflop", "images_per_second")
        }
        described = {**asdict(settings), "hardware": hardware}
        logged = log_benchmark("elir-speed", described, values)
        out.say(reports.elir_speed(described, [asdict(row) for row in rows], logged))
