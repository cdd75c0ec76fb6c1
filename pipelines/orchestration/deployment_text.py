"""The description of a deployment: what it does, from where to where, how to stop and go on."""

from __future__ import annotations

from datagen.settings import DatasetRecipe
from pipelines.recipes.full_recipe import AnyRecipe
from pipelines.terminal.text import counted, yaml_lines
from training.settings.benchmark import BenchmarkRecipe
from training.settings.recipe import TrainingRecipe

TEXT = """\
**{what}**

{parts}

**Start or continue** with *Run*, or `prefect deployment run '{deployment}'`. One run at a time: a \
run that is due during another is cancelled, and the next one takes up all that is new.

**Cancel** with *Cancel* in the menu of a run, or `prefect flow-run cancel ID`. What is finished \
is kept, and the next run continues there.

**Change** it with `flowmapsr deploy`, the new settings and the same output. It runs:

```yaml
{recipe}
```
"""


def description(recipe: AnyRecipe, deployment: str) -> str:
    """Markdown for the page of a `deployment`, named `<flow>/<name>`."""
    if isinstance(recipe, DatasetRecipe):
        what = "Makes a dataset of photos. Each run adds the photos that are new."
        parts = _dataset(recipe)
    elif isinstance(recipe, TrainingRecipe):
        what = "Trains a model. A run continues from the last checkpoint; one that is done stays."
        places = ", ".join(f"`{place}`" for place in recipe.places)
        parts = [f"from {places}", *_training(recipe)]
    elif isinstance(recipe, BenchmarkRecipe):
        what = "Compares models. A run measures what is new, and writes table and report."
        parts = [f"model `{model.folder}`" for model in recipe.models]
        parts += [f"photos `{recipe.place}`"] if recipe.measures_photos else []
    else:
        what = "Makes a dataset of photos, trains a model on it and evaluates the model."
        parts = [*_dataset(recipe.dataset), *_training(recipe.training)]
        parts.append(f"evaluation on the photos in `{recipe.evaluation.place}`")
    return TEXT.format(
        what=what,
        parts="\n".join(f"- {part}" for part in (*parts, f"to `{recipe.output}`")),
        deployment=deployment,
        recipe="\n".join(yaml_lines(recipe.model_dump(mode="json"))),
    )


def _dataset(recipe: DatasetRecipe) -> list[str]:
    places = ", ".join(f"`{place}`" for place in recipe.places)
    sides = ", ".join(str(budget.side) for budget in recipe.buckets.budgets)
    samples = counted(recipe.samples_per_photo, "sample")
    codec = recipe.codec.kind if recipe.latents else "none"
    return [f"from {places}", f"dataset: {samples} a photo, side {sides} pixels, codec {codec}"]


def _training(recipe: TrainingRecipe) -> list[str]:
    stages = ", ".join(f"{stage.name} ({stage.steps} steps)" for stage in recipe.stages)
    return [f"training: {stages}; MLflow experiment {recipe.mlflow_experiment}"]
