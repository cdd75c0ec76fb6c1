"""Which chains of operations a recipe may have, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from datagen.degradation.settings import DegradationSettings, paths

_DOWN, _BACK = {"kind": "downscale"}, {"kind": "resize_back"}
_RESIZE, _JPEG = {"kind": "resize"}, {"kind": "jpeg"}


def _either(*chains: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": "either", "chains": [{"operations": chain} for chain in chains]}


def _sometimes(probability: float, *chain: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "sometimes", "probability": probability, "operations": chain}


@pytest.mark.parametrize(
    "operations",
    [
        [_DOWN, _BACK],
        [_RESIZE, _either([_DOWN, _JPEG], [_JPEG, _DOWN]), _BACK],
        [_sometimes(0.5, _JPEG, _RESIZE), {"kind": "usm"}, _sometimes(1, _DOWN), _BACK],
        [{"kind": "grey"}, {"kind": "box"}, _DOWN, _sometimes(0, _DOWN), _BACK],
        [_either([_DOWN], [_RESIZE, _either([_DOWN], [_JPEG, _DOWN])]), _BACK, _JPEG],
    ],
)
def test_valid_chains_are_accepted(operations: list[dict[str, Any]]) -> None:
    settings = DegradationSettings.model_validate({"operations": operations})
    assert DegradationSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "operations,message",
    [
        ([], "exactly one"),
        ([_DOWN], "exactly one"),
        ([_DOWN, _DOWN, _BACK], "exactly one"),
        ([_BACK, _DOWN], "must come before 'resize_back'"),
        ([_either([_DOWN], [_JPEG]), _BACK], "not: jpeg, resize_back"),
        ([_either([_DOWN], [_DOWN, _BACK]), _BACK], "exactly one"),
        ([_DOWN, _RESIZE, _BACK], "'resize' must come before 'downscale'"),
        ([_either([_DOWN], [_DOWN, _RESIZE]), _BACK], "'resize' must come before"),
        ([_DOWN, _BACK, {"kind": "sinc", "kernel_size": [7, 20]}], "two odd widths"),
        ([_DOWN, _BACK, {"kind": "sinc", "omega": [1, 4]}], "less than or equal to 3.14"),
        ([{"kind": "resize", "factor": [1.1, 2]}, _DOWN, _BACK], "must reach from 1 or below"),
        (
            [{"kind": "resize", "up_probability": 0.6, "down_probability": 0.5}, _DOWN, _BACK],
            "more than 1",
        ),
        ([_DOWN, _BACK, {"kind": "mask", "fraction": [0.5, 1.5]}], "less than or equal to 1"),
        ([_DOWN, _BACK, {"kind": "noise", "gaussian_sigma": [-1, 2]}], "greater than or equal"),
        ([_DOWN, _BACK, _either([_JPEG])], "at least 2"),
        ([_sometimes(0.5, _DOWN), _BACK], "exactly one 'downscale'"),
        ([_DOWN, _sometimes(0.5, _RESIZE), _BACK], "'resize' must come before"),
        ([_DOWN, _BACK, _sometimes(1.5, _JPEG)], "less than or equal to 1"),
        ([_DOWN, _BACK, _sometimes(0.5)], "at least 1"),
        ([{"kind": "box", "side": [0, 0.5]}, _DOWN, _BACK], "greater than 0"),
        ([{"kind": "box", "side": [0.5, 64]}, _DOWN, _BACK], "less than or equal to 1"),
        ([{"kind": "usm", "kernel_size": 50}, _DOWN, _BACK], "odd width from 3 to 255"),
        ([{"kind": "usm", "threshold": -1}, _DOWN, _BACK], "greater than or equal to 0"),
        ([_DOWN, _BACK, {"kind": "blur", "shapes": {"iso": 0}}], "at least one weight"),
    ],
)
def test_invalid_chains_are_refused(operations: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DegradationSettings.model_validate({"operations": operations})


@pytest.mark.parametrize("scale", [[0, 2], [4, 2], [-1, 1]])
def test_impossible_scales_are_refused(scale: list[float]) -> None:
    with pytest.raises(ValidationError):
        DegradationSettings.model_validate({"scale": scale})


def test_an_unknown_scale_law_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'uniform', 'uniform_side' or 'log_uniform'"):
        DegradationSettings.model_validate({"scale_law": "normal"})


def test_all_paths_through_alternatives_are_listed() -> None:
    settings = DegradationSettings.model_validate(
        {
            "operations": [
                _either([_JPEG], [_sometimes(0.5, _RESIZE), _JPEG]),
                _either([_DOWN], [_JPEG, _DOWN]),
                _BACK,
            ]
        }
    )
    found = [" ".join(operation.kind for operation in path) for path in paths(settings.operations)]
    assert found == [
        "jpeg downscale resize_back",
        "jpeg jpeg downscale resize_back",
        "resize jpeg downscale resize_back",
        "resize jpeg jpeg downscale resize_back",
        "jpeg downscale resize_back",
        "jpeg jpeg downscale resize_back",
    ]
