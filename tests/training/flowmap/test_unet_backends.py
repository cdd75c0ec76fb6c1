"""Other backends give the pictures of PyTorch, and leave to it what they cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.errors import FlowmapsrError
from tests.support.models import saved_model
from training.flowmap.unet_backends import run_by
from training.inference.upscaler import Upscaler
from training.monitoring.memory import PeakBytes
from training.settings.evaluation import Backend
from training.settings.model import ModelSettings


@pytest.fixture
def folder(tmp_path: Path, tiny_model: ModelSettings) -> Path:
    return saved_model(tmp_path / "model", tiny_model, trained=True)


def _both(
    folder: Path, *, tile: int | None = None, backend: Backend = "openvino"
) -> tuple[Upscaler, Upscaler]:
    plain = Upscaler.from_pretrained(folder, device="cpu", tile=tile)
    return plain, Upscaler.from_pretrained(folder, device="cpu", tile=tile, backend=backend)


@pytest.mark.parametrize("backend", ["openvino", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [(64, 64), (40, 104), (131, 90)])
def test_pictures_of_any_size_differ_by_a_level_at_most(
    size: tuple[int, int], backend: Backend, folder: Path
) -> None:
    plain, fast = _both(folder, backend=backend)
    assert plain.digest() != fast.digest()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected, found = (one.upscale(image, scale=2, steps=2) for one in (plain, fast))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.abs(expected.astype(int) - plain.enlarge(image, expected.shape[1::-1])).max() > 1


def test_tiles_with_shared_norms_are_pytorchs(folder: Path) -> None:
    plain, fast = _both(folder, tile=256)
    image = np.random.default_rng(1).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    expected, found = (one.upscale(image, scale=1, steps=1) for one in (plain, fast))
    assert np.array_equal(found, expected)


def test_memory_is_foretold_as_of_pytorch(folder: Path) -> None:
    peaks = []
    for upscaler in _both(folder):
        image = np.zeros((256, 256, 3), np.uint8)
        upscaler.restore(image[:64, :64], steps=1)
        with PeakBytes() as measured:
            upscaler.restore(image, steps=1)
        peaks.append(measured.peak)
    assert peaks[0] == peaks[1]


def test_a_process_that_let_go_of_two_models_outlives_a_signal(folder: Path) -> None:
    program = [sys.executable, "-m", "tests.training.workers.two_openvino_models", str(folder)]
    ended = subprocess.run(program, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_it_is_for_cpus(tiny_model: ModelSettings) -> None:
    from training.flowmap.network import FlowMapNet

    with torch.device("meta"):
        net = FlowMapNet(tiny_model, latent_channels=4)
    with pytest.raises(FlowmapsrError, match="backend=openvino is for CPUs.*leave it out"):
        run_by(net.unet, "openvino")
