"""Every setting is content, correctable or execution, and the digests follow these groups."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from datagen.records import Group, group_of
from datagen.settings import DatasetRecipe
from tests.support.tiny import DISTILL, WARMUP
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe

TEXT = {"kind": "text_encoders", "source": "/encoders"}
GUIDED = {"kind": "self_distillation", "guidance": {}}
BEST = {"early_stopping": {"metric": "val/psnr_nfe1", "patience": 3}}
GAN = {**DISTILL, "name": "gan", "steps": 900, "dynamic_weighting": False, "adversarial": {}}
RECIPES = (
    DatasetRecipe.model_validate(
        {
            "sources": ["/photos"],
            "output": "/set",
            "codec": {"kind": "autoencoder_kl", "source": "/vae"},
        }
    ),
    TrainingRecipe.model_validate(
        {
            "manifest": "/set",
            "output": "/run",
            "workers": {"min": 1, "max": 2},
            "prompts": TEXT,
            "stages": [
                {**WARMUP, "budgets": [{"side": 32, "probability": 1}]},
                {**DISTILL, "perceptual": {"kind": "lpips"}, "objective": GUIDED, **BEST},
                GAN,
            ],
        }
    ),
)
"""With something in every section, so that all settings can be seen."""

Change = tuple[str, Group, BaseModel]


def _changes(model: BaseModel, outer: Group = Group.CONTENT) -> Iterator[Change]:
    """Every setting at any depth: its name, its group and the model with another value of it."""
    for name, field in type(model).model_fields.items():
        group = outer if outer is not Group.CONTENT else group_of(field)
        value = getattr(model, name)
        inner = value if isinstance(value, tuple) else (value,)
        if not any(isinstance(item, BaseModel) for item in inner):
            yield name, group, model.model_copy(update={name: "another value"})
        for index, item in enumerate(inner):
            for deeper, deep_group, changed in _changes(item, group) if _is_model(item) else ():
                new: Any = changed
                if isinstance(value, tuple):
                    new = (*value[:index], changed, *value[index + 1 :])
                copy = model.model_copy(update={name: new})
                yield f"{name}.{deeper}", deep_group, copy


def _is_model(value: Any) -> bool:
    return isinstance(value, BaseModel)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_a_digest_changes_with_every_setting_of_its_groups_and_with_no_other(
    recipe: DatasetRecipe | TrainingRecipe,
) -> None:
    found = list(_changes(recipe))
    assert len(found) > 40
    warnings.simplefilter("ignore", UserWarning)  # the other value is of no setting's type
    for name, group, changed in found:
        assert isinstance(changed, DatasetRecipe | TrainingRecipe)
        assert (changed.digest() != recipe.digest()) == (group is not Group.EXECUTION), name
        is_fixed = group is Group.CONTENT
        assert (changed.digest(fixed=True) != recipe.digest(fixed=True)) == is_fixed, name


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    known: set[type[BaseModel]] = set()
    pending: list[Any] = [model]
    while pending:
        found = pending.pop()
        if isinstance(found, type) and issubclass(found, BaseModel) and found not in known:
            known.add(found)
            pending += [field.annotation for field in found.model_fields.values()]
        pending += getattr(found, "__args__", ())
    return known


@pytest.mark.parametrize("recipe", [DatasetRecipe, TrainingRecipe])
def test_every_setting_is_in_one_group(recipe: type[BaseModel]) -> None:
    models = _models(recipe)
    assert len(models) > 8
    for model in models:
        for name, field in model.model_fields.items():
            marks = [mark for mark in field.metadata if isinstance(mark, Group)]
            assert len(marks) <= 1, f"{model.__name__}.{name}"
            if marks == [Group.CORRECTABLE]:
                assert model.__name__ in ("StageSettings", "AdversarialSettings")


def test_settings_of_where_and_how_a_run_executes_are_not_content() -> None:
    """The folders, the number of workers, what is shown and how often, and where it is tracked."""
    names = {name for name, group, _ in _changes(RECIPES[1]) if group is Group.EXECUTION}
    assert names >= {
        *("manifest", "output", "checkpoints", "cache_dir", "workers.max", "placement"),
        *("validation_samples", "mlflow_experiment", "watchdog_seconds", "max_failures"),
        *("stages.zero_stage", "stages.checkpoint_every_steps", "stages.validate_every_steps"),
        *("stages.micro_batch", "stages.budgets.micro_batch"),
    }
    correctable = {name for name, group, _ in _changes(RECIPES[1]) if group is Group.CORRECTABLE}
    assert correctable == {
        *("stages.steps", "stages.adversarial.convergence.window"),
        "stages.adversarial.convergence.tolerance",
        *("stages.learning_rate", "stages.lr_final_fraction", "stages.lr_warmup_steps"),
        *("stages.gradient_clipping", "stages.keep_best", "stages.model_from"),
        *("stages.early_stopping", "stages.early_stopping.metric"),
        "stages.early_stopping.patience",
    }


def test_every_setting_is_described() -> None:
    bare = [
        f"{model.__name__}.{name}"
        for recipe in (DatasetRecipe, TrainingRecipe, EvaluationSettings)
        for model in _models(recipe)
        for name, field in model.model_fields.items()
        if name != "kind" and not field.description
    ]
    assert bare == []
