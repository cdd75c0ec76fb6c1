"""Stages under `torchrun`, no Ray and no Prefect: end, golden loss, kill -9, SIGTERM, faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from datagen.errors import FlowmapsrError
from tests.training.conftest import RecipeMaker, torchrun
from training.run import write_recipe
from training.settings import TrainingRecipe

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_run_loss.json"


def _start(recipe: TrainingRecipe, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.json"
    path.write_text(recipe.model_dump_json())
    return subprocess.Popen(
        torchrun(path, workers=recipe.workers),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": _store(folder)},
        start_new_session=True,
    )


def _store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def _train(recipe: TrainingRecipe, folder: Path) -> str:
    process = _start(recipe, folder)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def _losses(recipe: TrainingRecipe, stage: str) -> dict[int, float]:
    """Reported loss by step; a step trained twice must have reported the same."""
    journal = Path(recipe.output) / "stages" / stage / "tracking.jsonl"
    losses: dict[int, float] = {}
    for line in journal.read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            loss = event["values"]["loss/total"]
            assert losses.setdefault(event["step"], loss) == loss
    return losses


def _weights(recipe: TrainingRecipe, stage: str) -> dict[str, torch.Tensor]:
    path = Path(recipe.output) / "stages" / stage / "model" / "model.safetensors"
    return safetensors.torch.load_file(path)


def _wait(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(
    dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrainingRecipe]:
    """A finished run of both stages with two workers."""
    from tests.training.conftest import TINY_MODEL

    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = make_recipe(dataset, folder / "run", TINY_MODEL)
    _train(recipe, folder)
    yield recipe


def make_recipe(dataset: Path, output: Path, model: dict[str, object]) -> TrainingRecipe:
    common = {
        "steps": 12,
        "global_batch": 4,
        "micro_batch": 1,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "checkpoint_every": 3,
    }
    charbonnier = {"kind": "charbonnier", "patch": 16}
    return TrainingRecipe.model_validate(
        {
            "manifest": str(dataset / "manifest.json"),
            "output": str(output),
            "workers": 2,
            "seed": 3,
            "model": model,
            "stages": [
                {"name": "warmup", "objective": {"kind": "flow_matching"}, **common},
                {
                    "name": "distill",
                    "objective": {"kind": "self_distillation"},
                    "perceptual": charbonnier,
                    **common,
                },
            ],
            "images_every": 6,
        }
    )


def _again(recipe: TrainingRecipe, folder: Path) -> TrainingRecipe:
    return recipe.model_copy(update={"output": str(folder / "run")})


def test_a_run_leaves_models_records_and_pictures(undisturbed: TrainingRecipe) -> None:
    stages = Path(undisturbed.output) / "stages"
    for name in ("warmup", "distill"):
        record = json.loads((stages / name / "done.json").read_text())
        assert (record["steps"], record["images_seen"]) == (12, 48)
        assert (stages / name / "images" / "step-000012.png").is_file()
        checkpoints = sorted(p.name for p in (stages / name / "checkpoints").glob("step-*"))
        assert checkpoints == ["step-000009", "step-000012"]
    state = json.loads(
        (stages / "distill" / "checkpoints" / "step-000012" / "trainer_state.json").read_text()
    )
    assert (state["step"], state["images_seen"]) == (12, 48)


def test_the_loss_of_a_tiny_run_is_golden(undisturbed: TrainingRecipe) -> None:
    golden = json.loads(GOLDEN.read_text())
    for stage, expected in golden.items():
        losses = _losses(undisturbed, stage)
        assert losses == pytest.approx({int(k): v for k, v in expected.items()}, rel=1e-3)


def test_distill_starts_from_the_model_of_warmup(undisturbed: TrainingRecipe) -> None:
    warm, distilled = _weights(undisturbed, "warmup"), _weights(undisturbed, "distill")
    assert warm.keys() == distilled.keys()
    differences = [float((warm[k] - distilled[k]).abs().max()) for k in warm]
    # 12 steps of AdamW at 1e-3 move no weight further than about 12e-3.
    assert 0 < max(differences) < 0.02


def test_a_finished_run_is_skipped(undisturbed: TrainingRecipe, tmp_path: Path) -> None:
    before = (Path(undisturbed.output) / "stages" / "distill" / "done.json").stat().st_mtime_ns
    _train(undisturbed, tmp_path)
    after = (Path(undisturbed.output) / "stages" / "distill" / "done.json").stat().st_mtime_ns
    assert before == after


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_bit_identical_losses_and_weights(
    undisturbed: TrainingRecipe, tmp_path: Path, signal_number: signal.Signals
) -> None:
    recipe = _again(undisturbed, tmp_path)
    checkpoints = Path(recipe.output) / "stages" / "warmup" / "checkpoints"
    process = _start(recipe, tmp_path)
    _wait(lambda: (checkpoints / "step-000003").exists(), process)
    if signal_number == signal.SIGKILL:
        os.killpg(process.pid, signal_number)
    else:
        process.send_signal(signal_number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (Path(recipe.output) / "stages" / "distill" / "done.json").exists()
    _train(recipe, tmp_path)
    for stage in ("warmup", "distill"):
        mine, theirs = _losses(recipe, stage), _losses(undisturbed, stage)
        assert mine[12] == theirs[12]
        weights, expected = _weights(recipe, stage), _weights(undisturbed, stage)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_another_number_of_workers_on_a_checkpoint_is_refused(
    undisturbed: TrainingRecipe, tmp_path: Path
) -> None:
    recipe = _again(undisturbed, tmp_path)
    process = _start(recipe, tmp_path)
    checkpoints = Path(recipe.output) / "stages" / "warmup" / "checkpoints"
    _wait(lambda: (checkpoints / "step-000003").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    with pytest.raises(FlowmapsrError, match="different: workers"):
        write_recipe(recipe.model_copy(update={"workers": 1}))


def test_a_run_folder_of_another_recipe_is_refused(recipe: RecipeMaker) -> None:
    write_recipe(recipe())
    write_recipe(recipe())
    with pytest.raises(FlowmapsrError, match="different: stages"):
        write_recipe(recipe(learning_rate=2e-3))


def test_a_wrong_recipe_file_is_usage_error_2(tmp_path: Path) -> None:
    import sys

    path = tmp_path / "recipe.json"
    path.write_text('{"manifest": "x", "output": "y", "stages": []}')
    done = subprocess.run(
        [sys.executable, "-m", "training.run", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "stages" in done.stderr and "Traceback" not in done.stderr
