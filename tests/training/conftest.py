"""What the training tests share."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

from datagen.dataset.manifest import Manifest, load_manifest
from tests.support.tiny import MODEL
from training.settings.model import ModelSettings


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture
def manifest(dataset: Path) -> Manifest:
    return load_manifest(str(dataset))


@pytest.fixture
def tiny_model() -> ModelSettings:
    return ModelSettings.model_validate(MODEL)
