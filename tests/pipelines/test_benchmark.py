"""`flowmapsr benchmark elir-speed`: the published sizes and operations, printed and logged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from mlflow import MlflowClient

from training.elir.speed import SpeedSettings, measure_speed


def test_parts_have_the_operations_of_the_specification() -> None:
    """Those of 256 pixels, by the area; worked out apart from this code."""
    import torch

    rows = measure_speed(SpeedSettings(side=64, calls=1), torch.device("cpu"))
    gflop = {row.part: 16 * row.gflop for row in rows}
    expected = {"encoder": 30.6, "coarse": 11.3, "field": 8.2, "decoder": 35.4, "whole": 101.9}
    assert gflop == pytest.approx(expected, rel=0.012)
    assert rows[-1].parameters == 26_893_747
    assert all(row.images_per_second > 0 for row in rows)


def test_the_table_is_printed_and_logged(invoke: Callable[..., Any]) -> None:
    small = ("--width", "32", "--side", "32", "--calls", "1", "--batch", "2")
    ended = invoke("benchmark", "elir-speed", *small, "--json")
    assert ended.code == 0, ended
    found = json.loads(ended.out)
    assert [row["part"] for row in found["rows"]][-1] == "whole"
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    run = client.get_run(found["mlflow"].split(" in ")[0])
    speed = run.data.metrics["whole/images_per_second"]
    assert speed == pytest.approx(found["rows"][-1]["images_per_second"])
    assert run.data.params["width"] == "32"


def test_sizes_that_do_not_fit_are_refused(invoke: Callable[..., Any]) -> None:
    ended = invoke("benchmark", "elir-speed", "--side", "100")
    assert ended.code == 2 and "100 is no multiple of 32" in ended.err
