"""Stages under `torchrun`, no Ray and no Prefect: end, golden loss, kill -9, SIGTERM, faults."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from datagen.errors import FlowmapsrError
from datagen.io import storage
from tests.support.eventually import eventually
from tests.support.launch import deepspeed, finish, start_torchrun, start_workers, train
from tests.support.mlflow_runs import mlflow_names
from tests.support.s3 import FaultyS3
from tests.support.tiny import DISTILL, WARMUP, RunMaker, same_weights, weights
from training.checkpoints.reader import read_commit
from training.inference.upscaler import Upscaler
from training.run_dir.paths import StagePaths
from training.run_dir.recipe_guard import check_recipe, write_recipe
from training.run_dir.records import StageRecord, WorkerGroup
from training.run_dir.starts import Start, append_line
from training.run_dir.stop_signal import StopSignal
from training.settings.recipe import TrainingRecipe
from training.tracking.journal import read_metrics
from training.tracking.pictures import PHOTO
from training.tracking.tracker import reset_tracking

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_run_loss.json"

START = Start(time=0.0, workers=WorkerGroup(hosts=("a",), devices=("b",), on_gpus=False), step=0)


def _losses(recipe: TrainingRecipe, stage: str) -> dict[int, float]:
    """Reported loss by step."""
    series = read_metrics(Path(recipe.output) / "stages" / stage)["loss/total"]
    return dict(zip(series.steps, series.values, strict=True))


def test_a_run_leaves_models_records_and_pictures(undisturbed: TrainingRecipe) -> None:
    stages = Path(undisturbed.output) / "stages"
    for name in ("warmup", "distill"):
        record = json.loads((stages / name / "done.json").read_text())
        assert (record["steps"], record["images_seen"]) == (60, 240)
        for picture in ("pictures-photo_1", "loss_over_times", "weighting_over_times"):
            assert (stages / name / "images" / f"{picture}-000060.png").is_file()
        photos = [PHOTO.format(number) for number in (1, 2)]  # one of each group
        journal = (stages / name / "files.jsonl").read_text().splitlines()
        pictures = [event for event in map(json.loads, journal) if event["kind"] == "picture"]
        assert [(event["key"], event["step"]) for event in pictures] == [
            (key, step)
            for step in (0, 30, 60)
            for key in (*photos, "loss_over_times", "weighting_over_times")
            if (key, step) != ("loss_over_times", 0)
        ]
        checkpoints = sorted(p.name for p in (stages / name / "checkpoints").glob("step-*"))
        assert checkpoints == ["step-000050", "step-000060"]
    state = read_commit(str(stages / "distill" / "checkpoints" / "step-000060")).state
    assert (state.step, state.images_seen, state.world_size) == (60, 240, 2)


def test_the_loss_of_a_tiny_run_is_golden(undisturbed: TrainingRecipe) -> None:
    golden = json.loads(GOLDEN.read_text())
    for stage, expected in golden.items():
        losses = _losses(undisturbed, stage)
        assert losses == pytest.approx({int(k): v for k, v in expected.items()}, rel=1e-3)


def test_deepspeeds_launcher_trains_the_same_weights(
    run_recipe: RunMaker, undisturbed: TrainingRecipe, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    finish(start_torchrun(recipe, tmp_path, launcher=deepspeed))
    assert same_weights(recipe, undisturbed, "warmup")


def test_distill_starts_from_the_model_of_warmup(undisturbed: TrainingRecipe) -> None:
    warm, distilled = weights(undisturbed, "warmup"), weights(undisturbed, "distill")
    differences = [float((warm[name] - distilled[name]).abs().max()) for name in warm]
    # 60 steps of AdamW at 1e-3 move no weight further than about 0.06.
    assert 0 < max(differences) < 0.1


@pytest.mark.timeout(600)
def test_torchrun_stopped_by_sigterm_resumes_from_s3_to_the_bit_identical_model(
    undisturbed: TrainingRecipe, run_recipe: RunMaker, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    stage = Path(recipe.output) / "stages" / "warmup"
    prefix = f"s3://{faulty_s3.bucket}/checkpoints"
    recipe = recipe.model_copy(update={"checkpoints": prefix})
    checkpoints = f"{prefix}/warmup"
    faulty_s3.fail("status", "PUT", times=4)
    process = start_torchrun(recipe, tmp_path)
    eventually(lambda: storage.exists(f"{checkpoints}/step-000010"), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert re.search(r"^warmup: stopping, with a checkpoint of step \d+$", output, re.MULTILINE)
    assert not (stage / "done.json").exists()
    with pytest.raises(FlowmapsrError, match="different: seed"):
        check_recipe(recipe.model_copy(update={"seed": 4}))
    StopSignal(Path(recipe.output)).ask()  # left by a launcher that was killed while it waited
    train(recipe, tmp_path)
    assert same_weights(recipe, undisturbed, "warmup")
    assert storage.exists(f"{checkpoints}/step-000060/trainer_state.json")
    assert not (stage / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_other_signals_that_ask_to_end_save_a_checkpoint_too(
    run_recipe: RunMaker, tmp_path: Path, number: signal.Signals
) -> None:
    """To all processes, as a lost terminal, Slurm and Ctrl-C send them."""
    recipe = run_recipe(tmp_path / "run", stages=[{**WARMUP, "steps": 3000}])
    stage = StagePaths(tmp_path / "run", "warmup")
    process = start_workers(recipe, tmp_path)
    eventually(stage.progress.exists, process)
    for worker in psutil.Process(process.pid).children():
        worker.send_signal(number)
    output, _ = process.communicate(timeout=100)
    assert "stopped with a checkpoint" in output and "Traceback" not in output
    assert list(stage.checkpoints.glob("step-*/trainer_state.json"))
    client, names = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"), mlflow_names(recipe.output)
    runs = [client.get_run(one) for one in (names.parent, names.stages["warmup"])]
    assert [one.info.status for one in runs] == ["KILLED", "KILLED"]


def test_a_finished_run_is_skipped(undisturbed: TrainingRecipe, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.output, tmp_path / "run")
    done = tmp_path / "run" / "stages" / "distill" / "done.json"
    before = done.stat().st_mtime_ns
    train(undisturbed.model_copy(update={"output": str(tmp_path / "run")}), tmp_path)
    assert done.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_sharded_by_zero_3_is_sampled_resumed_and_saved_complete(
    run_recipe: RunMaker, tmp_path: Path
) -> None:
    """Guided ESD; a second start resumes from the sharded checkpoint."""
    stage = {
        **DISTILL,
        "objective": {
            "kind": "self_distillation",
            "formulation": "eulerian",
            "guidance": {"strength": [1.0, 4.0]},
        },
        "zero_stage": 3,
        "steps": 6,
        "checkpoint_every_steps": 3,
        "validate_every_steps": 3,
    }
    model = {"guidance_conditioning": True, "time_embedding_scale": 10.0}
    recipe = run_recipe(tmp_path / "run", stages=[stage], **model)
    train(recipe, tmp_path)
    home = Path(recipe.output) / "stages" / "distill"
    saved = weights(recipe, "distill")
    assert (home / "images" / "pictures-photo_1-000003.png").is_file()
    upscaler = Upscaler.from_pretrained(recipe.output)
    assert upscaler.restorer.guidance == upscaler.config.guidance_strength == 2.5
    (home / "done.json").unlink()
    shutil.rmtree(home / "model")
    shutil.rmtree(home / "checkpoints" / "step-000006")
    train(recipe, tmp_path)
    again = weights(recipe, "distill")
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def test_a_run_folder_of_another_recipe_is_refused(run_recipe: RunMaker, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe, other = (run_recipe(run, stages=stages) for stages in ([WARMUP], [WARMUP, DISTILL]))
    write_recipe(recipe, on_replace=reset_tracking)
    check_recipe(other)  # nothing has begun to train
    append_line(StagePaths(run, "warmup").starts, START)
    check_recipe(recipe)
    with pytest.raises(FlowmapsrError, match="different: stages was warmup, is warmup, distill"):
        check_recipe(other)


def test_correctable_settings_may_change_until_the_stage_is_finished(
    run_recipe: RunMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    lower = {**DISTILL, "learning_rate": 1e-4}
    recipe, corrected = (run_recipe(run, stages=[WARMUP, stage]) for stage in (DISTILL, lower))
    longer = run_recipe(run, stages=[WARMUP, {**lower, "steps": 90}])
    write_recipe(recipe, on_replace=reset_tracking)
    stage = StagePaths(run, "distill")
    append_line(stage.starts, START)
    check_recipe(corrected)
    check_recipe(longer)
    write_recipe(corrected, on_replace=reset_tracking)
    assert "stages.distill.learning_rate was 0.001, is 0.0001" in caplog.text
    assert corrected.digest() != recipe.digest()
    assert corrected.digest(fixed=True) == recipe.digest(fixed=True) == longer.digest(fixed=True)
    check_recipe(corrected)
    record = StageRecord(
        stage="distill", steps=60, images_seen=1, recipe_digest="", dataset_digest="", model=""
    )
    stage.done.write_text(record.model_dump_json())
    with pytest.raises(FlowmapsrError, match=r"learning_rate was 0\.0001, is 0\.001"):
        check_recipe(recipe)


def test_a_wrong_recipe_file_is_usage_error_2(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"manifest": "x", "output": "y", "stages": []}')
    done = subprocess.run(
        [sys.executable, "-m", "training.run", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "stages" in done.stderr and "Traceback" not in done.stderr
