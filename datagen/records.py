"""The base of every settings model and stored record, and the field types they share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of every settings model: unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds as given; ValueError when the lower one is above the upper one."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


NonNegativeRange = Annotated[
    tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(ordered)
]
PositiveRange = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(ordered)
]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by their dotted names: `{"a": {"b": 1}}` -> `{"a.b": "1"}`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
