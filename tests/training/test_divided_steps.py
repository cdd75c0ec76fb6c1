"""A step's samples have the same times, noise and gradients however they are divided."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.launch import train
from tests.support.tiny import DISTILL, RunMaker, weights
from training.run_dir.paths import StagePaths
from training.tracking.journal import read_metrics

STAGE: dict[str, Any] = {
    **DISTILL,
    "objective": {"kind": "self_distillation", "guidance": {"strength": [1, 3]}},
    "steps": 10,
    "global_batch": 6,
    "learning_rate": 1e-4,
}


def test_losses_do_not_depend_on_workers_micro_batch_or_zero_stage(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    found = []
    for number, (workers, micro_batch, zero_stage) in enumerate(
        [(1, 6, 1), (1, 1, 0), (2, 2, 2), (3, 1, 3)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        stage = {**STAGE, "micro_batch": micro_batch, "zero_stage": zero_stage}
        recipe = run_recipe(folder / "run", stages=[stage], guidance_conditioning=True)
        recipe = recipe.model_copy(update={"workers": workers})
        train(recipe, folder)
        metrics = read_metrics(StagePaths(folder / "run", "distill").root)
        terms = ("total", "fm", "sd", "perceptual", "weighting")
        found.append({term: metrics[f"loss/{term}"].values for term in terms})
    for other in found[1:]:
        for term, values in found[0].items():
            assert other[term] == pytest.approx(values, rel=1e-6), term


def test_a_run_goes_on_with_another_micro_batch(run_recipe: RunMaker, tmp_path: Path) -> None:
    """As on a GPU with less memory."""
    stage = {**STAGE, "micro_batch": 6, "checkpoint_every_steps": 5}
    recipe = run_recipe(tmp_path / "run", stages=[stage], guidance_conditioning=True)
    recipe = recipe.model_copy(update={"workers": 1})
    train(recipe, tmp_path)
    expected = weights(recipe, "distill")
    folder = StagePaths(tmp_path / "run", "distill")
    folder.done.unlink()
    shutil.rmtree(folder.model)
    shutil.rmtree(folder.checkpoints / "step-000010")
    smaller = recipe.stages[0].model_copy(update={"micro_batch": 1})
    train(recipe.model_copy(update={"stages": (smaller,)}), tmp_path)
    found = weights(recipe, "distill")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
