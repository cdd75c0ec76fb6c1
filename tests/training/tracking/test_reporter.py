"""Metrics of one step come from several sources; no two may share a name."""

from __future__ import annotations

import pytest

from training.tracking.reporter import merge_unique


def test_metrics_of_different_names_are_merged() -> None:
    assert merge_unique({"a": 1.0}, {}, {"b": 2.0}) == {"a": 1.0, "b": 2.0}


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="loss/fm"):
        merge_unique({"loss/fm": 1.0, "a": 1.0}, {"loss/fm": 2.0})
