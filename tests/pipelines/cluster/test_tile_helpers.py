"""Tiles of one picture on several workers of a real Ray: the same bytes, also when one is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import ray
import torch
from skimage.data import astronaut

from pipelines.cluster.shared_model import SharedModel
from pipelines.cluster.tile_helpers import TileHelpers
from pipelines.cluster.workers import WorkerPlan, WorkerRequest
from tests.support.eventually import eventually
from tests.support.models import DCT, saved_model, tiny_autoencoder
from tests.support.tiny import MODEL
from training.inference.pictures.decode import Picture
from training.inference.pictures.metadata import Metadata
from training.inference.upscaler import Upscaler
from training.restorer_protocol import LoadOptions
from training.settings.model import ModelSettings

PHOTO = Picture(
    cv2.resize(astronaut(), (112, 144), interpolation=cv2.INTER_AREA), None, False, Metadata()
)
PLAN = WorkerPlan(1, WorkerRequest(1))


@pytest.fixture(params=[False, True], ids=["dct", "kl"])
def model(tmp_path: Path, request: pytest.FixtureRequest) -> SharedModel:
    """Of blocks that are each for itself, and of an autoencoder with norms and attention."""
    settings, codec = ModelSettings.model_validate(MODEL), DCT
    if request.param:
        codec = tiny_autoencoder(tmp_path / "vae")
    folder = saved_model(tmp_path / "model", settings, trained=True, codec=codec)
    return SharedModel.at(folder, LoadOptions(tile=256, same_everywhere=True))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As Ray's workers have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bands(upscaler: Upscaler) -> np.ndarray:
    found = upscaler.upscale_bands(PHOTO, scale=4, steps=2)
    return np.concatenate([band.rgb for band in found])


@pytest.mark.usefixtures("ray_cluster_address")
def test_helpers_change_no_bit(model: SharedModel, caplog: pytest.LogCaptureFixture) -> None:
    alone = bands(model.load())
    upscaler, helpers = model.load(), TileHelpers(model, PLAN)
    upscaler.tiler.runs = helpers.runs
    helpers._start()
    eventually(lambda: helpers._free() is not None, seconds=60)
    assert np.array_equal(bands(upscaler), alone)
    assert helpers.helped > 0

    ray.kill(helpers._helpers[0].actor)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(bands(upscaler), alone)
    assert "a worker that helped with tiles was lost" in caplog.text
    eventually(lambda: helpers._free() is not None, seconds=60)  # another has come
