"""The description of a deployment: what it does, from where to where, how to stop and go on."""

from __future__ import annotations

from collections.abc import Sequence

from datagen.settings import DatasetRecipe
from pipelines.recipes.full_recipe import AnyRecipe
from pipelines.terminal.text import counted, yaml_lines
from training.settings.recipe import TrainingRecipe


def description(recipe: AnyRecipe, deployment: str) -> str:
    """Markdown for the page of a `deployment`, named `<flow>/<name>`."""
    if isinstance(recipe, DatasetRecipe):
        what = "Makes a dataset of photos. Each run adds the photos that are new."
        sources, steps = recipe.sources, _dataset(recipe)
    elif isinstance(recipe, TrainingRecipe):
        what = "Trains a model. A run continues from the last checkpoint; one that is done stays."
        sources, steps = (recipe.manifest,), _training(recipe)
    else:
        what = "Makes a dataset of photos, trains a model on it and evaluates the model."
        sources = recipe.dataset.sources
        steps = [
            *_dataset(recipe.dataset),
            *_training(recipe.training),
            f"evaluation on the photos in `{recipe.evaluation.photos}`",
        ]
    lines = [
        f"**{what}**",
        "",
        f"- from {_listed(sources)}",
        f"- to `{recipe.output}`",
        *(f"- {step}" for step in steps),
        "",
        "**Start or continue** with *Run*, or "
        f"`prefect deployment run '{deployment}'`. One run at a time: a run that is due during "
        "another is cancelled, and the next one takes up all that is new.",
        "",
        "**Cancel** with *Cancel* in the menu of a run, or `prefect flow-run cancel ID`. What is "
        "finished is kept, and the next run continues there.",
        "",
        "**Change** it with `flowmapsr deploy`, the new settings and the same output. It runs:",
        "",
        "```yaml",
        *yaml_lines(recipe.model_dump(mode="json")),
        "```",
    ]
    return "\n".join(lines)


def _dataset(recipe: DatasetRecipe) -> list[str]:
    sides = ", ".join(str(budget.side) for budget in recipe.buckets.budgets)
    return [
        f"dataset: {counted(recipe.samples_per_photo, 'sample')} a photo, side {sides} pixels, "
        f"codec {recipe.codec.kind}"
    ]


def _training(recipe: TrainingRecipe) -> list[str]:
    stages = ", ".join(f"{stage.name} ({stage.steps} steps)" for stage in recipe.stages)
    return [f"training: {stages}; MLflow experiment {recipe.mlflow_experiment}"]


def _listed(addresses: Sequence[str]) -> str:
    return ", ".join(f"`{address}`" for address in addresses)
