"""A small dataset to inspect or to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datagen.build.in_process import build_in_process
from datagen.settings import DatasetRecipe


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset that the first test builds."""
    return tmp_path_factory.mktemp("built") / "dataset"


@pytest.fixture
def dataset(recipe: Callable[..., DatasetRecipe], built: Path) -> Path:
    """A copy that a test may change."""
    if not built.exists():
        build_in_process(recipe(output=str(built), hq_jpeg_quality=100))
    return Path(shutil.copytree(built, recipe().output))
