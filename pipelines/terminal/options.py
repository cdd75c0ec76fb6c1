"""Arguments and options that several commands share, and how help texts list them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a bundled recipe, or a YAML file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of the recipe, such as workers=2."),
]
Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="Folder or s3:// prefix, or its manifest.json.")
]
LoraScale = Annotated[
    float | None,
    typer.Option(min=0, help="Strength of an adversarial model's LoRA, if not the model's own."),
]
Guidance = Annotated[
    float | None,
    typer.Option(min=0, help="Guidance strength (1 is none), if not the model's own."),
]
Flow = Literal["dataset", "training", "full"]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print the resolved recipe.")]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Take the output from another command, even a live one.")
]


class GroupsFirst(TyperGroup):
    """Lists groups before commands: making a dataset is the first thing to do."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: not isinstance(self.commands[name], TyperGroup))


class PlainUsage(TyperCommand):
    """Writes required arguments in the usage line as `RECIPE`, not `{RECIPE}`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]
