"""The recipe of a whole run: dataset, training and evaluation under one output.

Knows no Prefect and no Ray. Where each part lies follows from `output` and is never set twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from datagen.dataset.layout import MANIFEST
from datagen.records import Settings
from datagen.settings import DatasetRecipe
from training.settings.evaluation import EvaluationSettings
from training.settings.recipe import TrainingRecipe

Section = Literal["dataset", "training", "evaluation"]


def derived_places(output: str) -> dict[Section, dict[str, str]]:
    """Where the parts of a full run lie below its `output`."""
    base = output.rstrip("/")
    return {
        "dataset": {"output": f"{base}/dataset"},
        "training": {"manifest": f"{base}/dataset/{MANIFEST}", "output": f"{base}/run"},
    }


class FullRecipe(Settings):
    """Photos to reviewed model in one go: `<output>/dataset` and `<output>/run`."""

    output: str
    """Local folder that holds everything the run makes."""
    dataset: DatasetRecipe
    training: TrainingRecipe
    evaluation: EvaluationSettings

    @model_validator(mode="before")
    @classmethod
    def _place(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("output"), str):
            return data
        placed = dict(data)
        for section, places in derived_places(data["output"]).items():
            if isinstance(data.get(section), Mapping):
                placed[section] = {**places, **data[section]}
        return placed

    @model_validator(mode="after")
    def _check(self) -> Self:
        for section, places in derived_places(self.output).items():
            for key, place in places.items():
                given = getattr(getattr(self, section), key)
                if given != place:
                    raise ValueError(
                        f"{section}.{key} is {given!r}, but in a full recipe it follows from "
                        f"output and is {place!r}; leave {section}.{key} out"
                    )
        last = self.training.stages[-1]
        if self.evaluation.lora_scale is not None and last.adversarial is None:
            raise ValueError(
                f"evaluation.lora_scale is given, but the last stage, {last.name!r}, trains no "
                "LoRA; leave it out"
            )
        return self
