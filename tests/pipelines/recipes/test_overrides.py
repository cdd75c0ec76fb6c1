from __future__ import annotations

from typing import Any

import pytest

from pipelines.recipes.overrides import RecipeError, merged, parse_overrides, with_overrides

STAGES = {"stages": [{"name": "warmup", "steps": 10, "lr": 1}, {"name": "distill", "steps": 20}]}


@pytest.mark.parametrize(
    ("base", "patch", "result"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 9}}, {"a": 1, "b": {"c": 9, "d": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": [1, 2]}, {"a": {"1": 5}}, {"a": [1, 5]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": {"kind": "x", "p": 1}}, {"a": {"kind": "y"}}, {"a": {"kind": "y"}}),
        (
            {"a": {"kind": "x", "p": 1}},
            {"a": {"kind": "x", "q": 2}},
            {"a": {"kind": "x", "p": 1, "q": 2}},
        ),
        ({"a": {"kind": "x", "p": 1}}, {"a": {"p": 2}}, {"a": {"kind": "x", "p": 2}}),
        (
            STAGES,
            {"stages": {"distill": {"steps": 5}}},
            {"stages": [STAGES["stages"][0], {"name": "distill", "steps": 5}]},
        ),
    ],
)
def test_one_rule_merges_everything(base: Any, patch: Any, result: Any) -> None:
    before = repr(base)
    assert merged(base, patch) == result
    assert repr(base) == before


def test_an_override_reaches_a_stage_by_name_or_by_index() -> None:
    by_name = with_overrides(STAGES, {"stages.distill.steps": 7})
    assert by_name["stages"][1]["steps"] == 7
    assert by_name == with_overrides(STAGES, {"stages.1.steps": 7})


def test_an_unknown_stage_is_refused_with_the_names() -> None:
    with pytest.raises(RecipeError) as error:
        with_overrides(STAGES, {"stages.destill.steps": 7})
    for part in ("stages.destill", "warmup, distill", "did you mean 'distill'?"):
        assert part in str(error.value)


def test_an_index_past_the_end_is_refused() -> None:
    with pytest.raises(RecipeError, match="stages.5"):
        with_overrides(STAGES, {"stages.5.steps": 7})


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_kind_keeps_the_fields_given_with_it_in_either_order(order: int) -> None:
    given = [("codec.kind", "y"), ("codec.source", "here")][::order]
    result = with_overrides({"codec": {"kind": "x", "old": 1}}, dict(given))
    assert result == {"codec": {"kind": "y", "source": "here"}}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("k=7", 7),
        ("k=[a, b]", ["a", "b"]),
        ("k=[s3://b/x,/y]", ["s3://b/x", "/y"]),
        ("k=s3://b/x", "s3://b/x"),
        ("k=a=b", "a=b"),
        ("k=null", None),
        ("k={a: 1}", {"a": 1}),
    ],
)
def test_values_are_yaml(argument: str, value: Any) -> None:
    assert parse_overrides([argument]) == {"k": value}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["seed"], "name=value"),
        (["=7"], "name=value"),
        (["a..b=7"], "name=value"),
        (["seed=1", "seed=2"], "given twice"),
        (["sources=[a"], "sources = '[a'"),
    ],
)
def test_unknown_settings_are_refused(arguments: list[str], part: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_overrides(arguments)
    assert part in str(error.value)
