"""Upscaling on a GPU against the CPU, and what a full memory says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datagen.errors import FlowmapsrError
from tests.support.models import saved_model
from tests.support.networks import ATTENTION, tiny_net
from tests.support.tiny import STAGE
from training.data.loader import Batch
from training.data.planned import Position
from training.inference.upscaler import Upscaler
from training.monitoring.out_of_memory import explain_out_of_memory
from training.settings.evaluation import Precision
from training.settings.stage import StageSettings

SAME_LEVELS = 2
"""Largest difference of fp32, of 255."""
ROUNDED_LEVELS, ROUNDED_MEAN = 12, 1.0
"""The same of bf16, and on average."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = tiny_net(channels=192, **ATTENTION).settings
    return saved_model(tmp_path / "model", settings, trained=True)


def _levels(folder: Path, device: torch.device, precision: Precision) -> np.ndarray:
    upscaler = Upscaler.from_pretrained(folder, device=str(device), precision=precision)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (31, 22), interpolation=cv2.INTER_CUBIC)
    return upscaler.upscale(image, scale=2.5, steps=2).astype(int)


def test_fp32_is_the_cpus_picture(device: torch.device, folder: Path) -> None:
    found, expected = (_levels(folder, one, "fp32") for one in (device, torch.device("cpu")))
    assert np.abs(found - expected).max() <= SAME_LEVELS


def test_bf16_rounds_the_picture_only(device: torch.device, folder: Path) -> None:
    expected = _levels(folder, torch.device("cpu"), "fp32")
    apart = np.abs(_levels(folder, device, "bf16") - expected)
    assert 0 < apart.max() <= ROUNDED_LEVELS and apart.mean() < ROUNDED_MEAN


def test_the_usual_precision_is_bf16_on_a_gpu_and_fp32_on_a_cpu(
    device: torch.device, folder: Path
) -> None:
    usual: Precision = "bf16" if device.type == "cuda" else "fp32"
    assert np.array_equal(_levels(folder, device, "auto"), _levels(folder, device, usual))


@pytest.mark.gpu
def test_a_real_full_memory_is_explained_and_leaves_room_for_what_fits() -> None:
    stage = StageSettings.model_validate(
        {**STAGE, "name": "distill", "objective": {"kind": "flow_matching"}}
    )
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    latents = torch.zeros(2, 4, 16, 16, device=device)
    batch = Batch(("a", "b"), {"hq": latents, "lq": latents}, Position())
    with (
        pytest.raises(FlowmapsrError, match=r"2 samples with latents of 16x16.*CUDA out of memory"),
        explain_out_of_memory(stage, batch),
    ):
        torch.empty(2 * total, dtype=torch.uint8, device=device)
    assert float(torch.ones(1000, device=device).sum()) == 1000


@pytest.mark.gpu
def test_a_picture_that_is_too_large_for_the_gpu_is_refused(folder: Path) -> None:
    upscaler = Upscaler.from_pretrained(folder, device="cuda")
    photo = np.zeros((256, 256, 3), np.uint8)
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + 2**26) / torch.cuda.get_device_properties(
        0
    ).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(FlowmapsrError, match="256x256 at scale 8 does not fit into memory"):
            upscaler.upscale(photo, scale=8, steps=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert upscaler.upscale(photo, scale=1, steps=1).shape == photo.shape
