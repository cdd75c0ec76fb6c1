"""Photos to build from, and the command line as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app
from training.settings.recipe import TrainingRecipe

PHOTOS, VARIANTS, SAMPLES_PER_SHARD = 6, 4, 3
SHARDS = PHOTOS * VARIANTS // SAMPLES_PER_SHARD


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six smooth random pictures, 200x160 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(PHOTOS):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8))
        coarse.resize((200, 160), Image.Resampling.BICUBIC).save(folder / f"photo{index}.png")
    return folder


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, to be copied: they take seconds to create."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def write_training(path: Path, recipe: dict[str, Any] | TrainingRecipe) -> str:
    """Writes a recipe file with the training section alone; its path as an argument."""
    if isinstance(recipe, TrainingRecipe):
        recipe = recipe.model_dump(mode="json")
    path.write_text(json.dumps({"training": recipe}))
    return str(path)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        result = json.loads(self.out)
        assert isinstance(result, dict) and self.out.count("\n") == 1
        return result


def start_command(
    *words: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_of(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=240)
    return Ended(process.returncode, out, err)


@pytest.fixture
def flowmapsr(tmp_path: Path) -> Callable[..., Ended]:
    """Runs `flowmapsr WORDS...` in its own process, in an empty folder."""

    def run(*words: str, env: dict[str, str] | None = None) -> Ended:
        return end_of(start_command(*words, cwd=tmp_path, env=env))

    return run


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs `flowmapsr WORDS...` in this process, in an empty folder: fast, but without servers."""

    def run(*words: str, env: dict[str, str] | None = None) -> Ended:
        handler = signal.getsignal(signal.SIGTERM)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["flowmapsr", *words])
        result = CliRunner().invoke(app, words, env=env, catch_exceptions=False)
        signal.signal(signal.SIGTERM, handler)
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `flowmapsr WORDS...` and leaves it running."""

    def run(*words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return start_command(*words, cwd=tmp_path, env=env)

    return run


@pytest.fixture
def finished() -> Callable[[subprocess.Popen[str]], Ended]:
    """Waits for a started command."""
    return end_of


@pytest.fixture
def build_words(photos: Path) -> Callable[..., list[str]]:
    """Arguments of a small build of the photos, eight shards."""

    def words(output: Path, *more: str) -> list[str]:
        return [
            *("dataset", "build", "demo", f"sources=[{photos}]", f"output={output}"),
            *(f"samples_per_photo={VARIANTS}", f"samples_per_shard={SAMPLES_PER_SHARD}"),
            *("validation_fraction=0", *more),
        ]

    return words
