"""Arguments and options that several commands share, and how help shows commands."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from training.monitoring.json_log import FORMAT, json_line, json_wanted

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a bundled recipe, or a YAML file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of the recipe, such as workers=2."),
]
LoraScale = Annotated[
    float | None,
    typer.Option(min=0, help="Strength of an adversarial model's LoRA, if not the model's own."),
]
Guidance = Annotated[
    float | None,
    typer.Option(min=0, help="Guidance strength (1 is none), if not the model's own."),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="Of the network; auto is bf16 on GPUs that compute in it."),
]
Backend = Annotated[
    Literal["torch", "compile", "openvino"],
    typer.Option(help="Of the network; openvino (an extra) is faster on CPUs."),
]


def _bytes(text: str) -> int:
    """Such as 4GB or 512MiB."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is not a size such as 4GB or 512MB") from error


Tile = Annotated[
    int | None,
    typer.Option(
        min=256, help="Side of the tiles of large pictures, pixels; the largest that fits if none."
    ),
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        parser=_bytes,
        metavar="SIZE",
        help="What the command may hold of the device's memory, such as 4GB; most of it if none.",
    ),
]
ColorFix = Annotated[
    Literal["wavelet", "lab", "off"] | None,
    typer.Option(help="How colors are given back. [default: wavelet; off if the model makes them]"),
]
ColorStrength = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of the color change that is undone. [default: 1]"),
]
Preset = Annotated[
    Literal["faithful", "balanced", "detailed"] | None,
    typer.Option(help="Steps and strengths by the model's measured curve, where none are given."),
]
Flow = Literal["dataset", "training", "full", "benchmark"]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the resolved recipe.")]
Cluster = Annotated[bool, typer.Option("--cluster", help="Require the Ray cluster at RAY_ADDRESS.")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Take the output from another command, even a live one.")
]
RedoLater = Annotated[
    bool,
    typer.Option(
        "--redo-later", help="Train later stages anew that grew from a stage's old weights."
    ),
]

NewerData = Annotated[
    bool,
    typer.Option(
        "--newer-data", help="Train stages that have not begun on the dataset as it is now."
    ),
]


UsageError: Any = typer.BadParameter.__base__
"""Every kind of wrong usage; Typer has no name for it."""


class Commands(TyperGroup):
    """All commands. Lists groups first: making a dataset is the first thing to do."""

    def main(self, *args: Any, **options: Any) -> None:
        """Wrong usage too is one JSON object on standard output, if that is asked for."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except UsageError as error:
            self._show(error, options.get("args") or sys.argv)
            if "--json" in (options.get("args") or sys.argv):
                print(json.dumps({"error": error.format_message()}))
            code = error.exit_code
        sys.exit(code)

    @staticmethod
    def _show(error: Any, words: Sequence[str]) -> None:
        wanted = json_wanted() or "--log-format json" in " ".join(words).replace("=", " ")
        if wanted:
            print(json_line("error", error.format_message()), file=sys.stderr)
        else:
            error.show()

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: not isinstance(self.commands[name], TyperGroup))


_common = typer.Typer(add_completion=False)


@_common.command()
def _options_of_all(
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(
            envvar=FORMAT,
            show_envvar=False,
            help="Messages on stderr and logs of workers as text, or as JSON lines.",
        ),
    ] = "text",
) -> None:
    pass


class PlainUsage(TyperCommand):
    """Has the options of all commands, and writes required arguments in the usage line as `RECIPE`,
    not `{RECIPE}`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += typer.main.get_command(_common).params

    def invoke(self, ctx: Any) -> Any:
        """Sets the format of logs for the command and what it starts."""
        before = os.environ.get(FORMAT, "text")
        os.environ[FORMAT] = ctx.params.pop("log_format")
        try:
            return super().invoke(ctx)
        finally:
            os.environ[FORMAT] = before

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]
