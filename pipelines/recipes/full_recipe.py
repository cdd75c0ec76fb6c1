"""The recipe of a full run: dataset, training and evaluation below one output.

The paths of the parts follow from `output` and are never set twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from datagen.dataset.layout import MANIFEST
from datagen.records import Execution, Location, Settings
from datagen.settings import DatasetRecipe
from training.run_dir.paths import REPORT
from training.settings.benchmark import BenchmarkRecipe
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe

FullSection = Literal["dataset", "training", "evaluation"]
Section = Literal[FullSection, "benchmark"]
"""Part of a recipe's file."""

COMPARISON = "comparison.png"
"""Held-out photos below the output of a full run: LQ, bicubic, restored, original."""


def derived_paths(output: str) -> dict[FullSection, dict[str, str]]:
    """Paths of the parts of a full run below its `output`."""
    base = output.rstrip("/")
    return {
        "dataset": {"output": f"{base}/dataset"},
        "training": {"manifest": f"{base}/dataset/{MANIFEST}", "output": f"{base}/run"},
    }


class FullRecipe(Settings):
    """Photos to reviewed model in one go: `<output>/dataset` and `<output>/run`."""

    output: Execution[Location] = Field(examples=["/path/to/output"])
    """Local folder for everything the run makes."""
    dataset: DatasetRecipe
    """How the dataset is built."""
    training: TrainingRecipe
    """How the model is trained."""
    evaluation: EvaluationSettings
    """How the model is compared with others."""

    @property
    def report(self) -> str:
        """Where the page of the evaluation is."""
        return f"{self.output.rstrip('/')}/{REPORT}"

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("output"), str):
            return data
        filled = dict(data)
        evaluation = data.get("evaluation")
        if isinstance(evaluation, Mapping) and evaluation.get("pairs") is not None:
            # Recipes name scales, and pairs have theirs.
            filled["evaluation"] = {**evaluation, "scales": None}
        for section, paths in derived_paths(data["output"]).items():
            if isinstance(data.get(section), Mapping):
                filled[section] = {**paths, **filled[section]}
        return filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        for section, paths in derived_paths(self.output).items():
            for key, path in paths.items():
                given = getattr(getattr(self, section), key)
                if given != path:
                    raise ValueError(
                        f"{section}.{key} is {given!r}, but in a full recipe it follows from "
                        f"output and is {path!r}; leave {section}.{key} out"
                    )
        last = self.training.stages[-1]
        if self.evaluation.lora_scale is not None and last.adversarial is None:
            raise ValueError(
                f"evaluation.lora_scale is given, but the last stage, {last.name!r}, trains no "
                "LoRA; leave it out"
            )
        return self


AnyRecipe = DatasetRecipe | TrainingRecipe | FullRecipe | BenchmarkRecipe
"""The recipe of a flow."""
SECTION_MODELS: dict[Section, type[Settings]] = {
    "dataset": DatasetRecipe,
    "training": TrainingRecipe,
    "evaluation": EvaluationSettings,
    "benchmark": BenchmarkRecipe,
}
FULL_SECTIONS: tuple[FullSection, ...] = get_args(FullSection)
