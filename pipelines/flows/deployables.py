"""Finds the flow that runs a recipe, for a deployment."""

from __future__ import annotations

from datagen.settings import DatasetRecipe
from pipelines.flows.dataset import build_dataset
from pipelines.flows.full import full
from pipelines.flows.training import train
from pipelines.orchestration.deployments import Deployable
from pipelines.recipes.full_recipe import FullRecipe
from training.settings.recipe import TrainingRecipe


def deployable(recipe: DatasetRecipe | TrainingRecipe | FullRecipe) -> Deployable:
    """The flow of a recipe's kind with that recipe."""
    match recipe:
        case DatasetRecipe():
            return Deployable(build_dataset, recipe, recipe.output)
        case TrainingRecipe():
            return Deployable(train, recipe, recipe.output)
        case FullRecipe():
            return Deployable(full, recipe, recipe.output)
