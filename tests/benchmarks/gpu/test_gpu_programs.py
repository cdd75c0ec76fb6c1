"""The programs for a GPU in small: they must not drift from what they run while there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.benchmarks.gpu.__main__ import main
from tests.benchmarks.gpu.cases import CASES, FP32, FP32_ON_CPU, recipe_of
from tests.benchmarks.gpu.pack import pack
from tests.benchmarks.gpu.results import NotMeasured, Results
from tests.support.launch import ForkedLauncher, finish
from tests.support.tiny import write_photos
from training.inference.upscaler import Upscaler
from training.run_dir.paths import StagePaths

ABSENT = ("ray", "prefect", "mlflow", "boto3", "botocore", "moto")
"""Packages that the machine with the GPU lacks."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Several would wait for each other on cores that other tests use."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _forked(module: str, words: Sequence[str], env: Mapping[str, str]) -> ForkedLauncher:
    return ForkedLauncher(module, words, workers=1, env=dict(env))


def _program(name: str, folder: Path, *words: str) -> str:
    """Runs a program on small photos with forked trainings; the table that it wrote."""
    photos = folder / "photos"
    if not photos.exists():
        write_photos(photos, 6)
    places = ["--photos", str(photos), "--work", str(folder / "work"), "--tiny"]
    code = main([name, str(folder / "out"), *words, *places], launch=_forked)
    table = (folder / "out" / f"{name}.md").read_text()
    assert code == 0, table
    return table


def test_trainings_are_stopped_resumed_compared_and_used(tmp_path: Path) -> None:
    wanted = (
        *("libraries", "card", "connection", "dataset-dct8", "dataset-vae"),
        *("training-fp32-on-cpu", "training-compiled", "evaluation", "upscaling"),
    )
    table = _program("first", tmp_path, "--at-once", "1", "--only", *wanted)
    assert "| training-fp32-on-cpu | ok | 2 starts; loss/total: warmup" in table
    assert "| training-compiled | not measured: there is no GPU here |" in table
    assert "at most 0 levels from the CPU's" in table
    runs = tmp_path / "work" / "first" / "runs"
    shutil.copytree(runs / FP32_ON_CPU, runs / FP32)
    table = _program("first", tmp_path, "--only", "same-losses")
    assert "loss/fm of GPU and CPU: 0.0e+00 apart at most" in table


def test_every_part_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ["measure", str(folder), "--work", str(tmp_path / "work"), "--tiny"]
    finish(_forked("tests.benchmarks.gpu", words, os.environ))
    table = (folder / "measure.md").read_text()
    rows = [
        *("| FM | 64 | 2 | yes |", "| LSD guided | 64 | 2 | yes |", "| generator | 64 | 2 |"),
        *("| encode | 64 | 1 |", "| bf16 | 64 | 4 |", "| FM, SSD | 64 | 2 | True | not measured"),
        *("| 256 | 2 |", "| 64 | torch |"),
    ]
    assert all(row in table for row in rows), table
    assert "Nothing failed." in table


def test_a_model_is_trained_and_brought_back(tmp_path: Path) -> None:
    table = _program("train", tmp_path, "200")
    assert "the training is finished" in table
    assert "| adversarial | flowmapsr | x8 | 4 |" in table
    back = tmp_path / "out"
    with tarfile.open(back / "run.tgz") as tar:
        names = tar.getnames()
    assert {"run/stages.md", "run/guidance.jpg", "run/stages/warmup/tracking.jsonl"} <= set(names)
    joined = tmp_path / "model.tar"
    parts = sorted(back.glob("model.tar.*"))
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", joined, "-C", tmp_path / "unpacked"], check=True)
    assert Upscaler.from_pretrained(tmp_path / "unpacked" / "model").config.stage == "adversarial"


def test_they_import_without_what_the_machine_lacks() -> None:
    code = (
        "import importlib, pathlib, sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT}))\n"
        "for path in sorted(pathlib.Path('tests/benchmarks/gpu').glob('*.py')):\n"
        "    if not path.stem.startswith('test_'):\n"
        "        importlib.import_module('tests.benchmarks.gpu.' + path.stem)\n"
        "for name in ('tests.benchmarks.utilization', 'training.run', 'training.systems'):\n"
        "    importlib.import_module(name)\n"
        "import pytest\n"
        "words = ['-q', '-m', 'gpu', '--collect-only', '-p', 'no:cacheprovider', 'tests/gpu']\n"
        "sys.exit(pytest.main(words))\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_failure_does_not_stop_what_follows(tmp_path: Path) -> None:
    results = Results(tmp_path, "some")
    with results.attempt("first", 1):
        raise RuntimeError("a long story\nits end")
    with results.attempt("second"):
        raise NotMeasured("there is no GPU here")
    results.check("third", lambda: "well")
    assert results.failed == ["first, 1"]
    assert results.exit_code() == 1
    text = (tmp_path / "some.md").read_text()
    assert "| first | 1 | FAILED | RuntimeError: its end |" in text
    assert "| second | not measured: there is no GPU here |" in text
    assert "| third | ok | well |" in text
    assert "a long story" in (tmp_path / "some-failures.log").read_text()


@pytest.mark.parametrize("case", CASES)
def test_every_training_has_a_valid_recipe(tmp_path: Path, case: str) -> None:
    for tiny in (False, True):
        assert recipe_of(case, tmp_path, tiny=tiny).stages


def test_what_fits_is_packed_and_a_second_call_brings_the_rest(tmp_path: Path) -> None:
    stage = StagePaths(tmp_path / "run", "warmup")
    stage.model.mkdir(parents=True)
    weights = np.random.default_rng(0).bytes(100_000)
    (stage.model / "model.safetensors").write_bytes(weights)
    (stage.checkpoints / "step-4").mkdir(parents=True)
    (stage.checkpoints / "step-4" / "large").write_bytes(weights)
    one, two = tmp_path / "one", tmp_path / "two"
    room = 85_000
    assert "2 of 3 parts" in pack([stage], one, part=40_000, room=room)[1]
    assert "1 of 3 parts" in pack([stage], two, part=40_000, room=room, first_part=2)[1]
    assert sum(path.stat().st_size for path in one.iterdir()) <= room
    parts = [*sorted(one.glob("model.tar.*")), *sorted(two.glob("model.tar.*"))]
    (tmp_path / "joined").write_bytes(b"".join(path.read_bytes() for path in parts))
    (tmp_path / "back").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "joined", "-C", tmp_path / "back"], check=True)
    assert (tmp_path / "back" / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("program", "words"), [("first", ["--limit", "900"]), ("measure", []), ("train", ["600"])]
)
def test_a_whole_program_under_torchrun(tmp_path: Path, program: str, words: list[str]) -> None:
    given = [program, str(tmp_path / "out"), *words, "--tiny", "--work", str(tmp_path / "work")]
    subprocess.run([sys.executable, "-m", "tests.benchmarks.gpu", *given], check=True)
