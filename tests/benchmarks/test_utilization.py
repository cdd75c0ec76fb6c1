"""The table of utilization in small: sizes as they were asked for, and both turns of a GAN."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.benchmarks.utilization import batches_of, size_of
from tests.support.launch import ForkedLauncher
from tests.support.tiny import DISTILL, MODEL, STAGE

GAN = {
    **STAGE,
    "name": "gan",
    "objective": {"kind": "flow_matching"},
    "dynamic_weighting": False,
    "adversarial": {
        "lora": {"rank": 2, "target_modules": ["conv1"]},
        "discriminator": {
            "channels": [8, 8],
            "strides": [2, 1, 1],
            "norm_groups": 4,
            "warmup_steps": 3,
        },
    },
}


def test_a_side_has_its_micro_batches_or_those_that_double() -> None:
    sizes = [size_of(word) for word in ("512=16", "512=24", "1024")]
    assert batches_of(sizes) == {512: [16, 24], 1024: [1, 2, 4, 8, 16, 32, 64]}


def test_every_stage_turn_and_size_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"  # JSON is YAML
    path.write_text(json.dumps({"training": {"model": MODEL, "stages": [DISTILL, GAN]}}))
    words = [str(path), "--sizes", "64=2"]
    process = ForkedLauncher("tests.benchmarks.utilization", words, workers=1, env=dict(os.environ))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], *row[1:4]) for row in rows] == [
        ("| distill", "update", "64", "2"),
        ("| gan", "generator", "64", "2"),
        ("| gan", "discriminator", "64", "2"),
    ]
    # The generator's turn also passes backward through its own network.
    flops = {row[1]: float(row[6]) * float(row[4]) for row in rows}
    assert flops["generator"] > flops["discriminator"] > 0
