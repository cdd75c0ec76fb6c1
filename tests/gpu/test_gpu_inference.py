"""Upscaling on a GPU against the CPU, and what a full memory says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datagen.errors import FlowmapsrError
from tests.support.models import saved_model
from tests.support.networks import ATTENTION, tiny_net
from tests.support.tiny import STAGE
from training.data.loader import Batch
from training.data.planned import Position
from training.inference.pictures.decode import Picture
from training.inference.pictures.metadata import Metadata
from training.inference.tiles.batches import MOST
from training.inference.tiles.shared_norms import SharedNorms
from training.inference.tiles.tiler import Tiler
from training.inference.tiles.transfers import ahead, to_host
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


@torch.inference_mode()
def _in_tiles(
    device: torch.device, dtype: torch.dtype, batch: int | None, seen: list[int] | None = None
) -> tuple[Tensor, Tiler]:
    """What a network makes of random latents in 12 tiles of 32 by 32."""
    net = tiny_net(**ATTENTION).to(device, dtype)
    x = torch.randn(1, 12, 64, 88, generator=torch.Generator().manual_seed(0)).to(device)

    def fn(part: Tensor) -> Tensor:
        if seen is not None:
            seen.append(len(part))
        times = torch.ones(len(part), device=device)
        return net(part, times, 0 * times)

    tiler = Tiler(tile=256, batch=batch)
    return tiler(net, fn, x, pixels=8, multiple=net.downsample), tiler


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_tiles_at_a_time_changes_no_bit(
    device: torch.device, dtype: torch.dtype
) -> None:
    alone, _ = _in_tiles(device, dtype, 1)
    for batch in (2, 3, 5):
        assert torch.equal(_in_tiles(device, dtype, batch)[0], alone), batch


@pytest.mark.gpu
def test_a_gpu_runs_as_many_tiles_at_a_time_as_fit() -> None:
    seen = list[int]()
    result, tiler = _in_tiles(torch.device("cuda"), torch.float32, None, seen)
    assert MOST in seen and tiler.batches.most == MOST
    assert torch.equal(result, _in_tiles(torch.device("cuda"), torch.float32, 1)[0])


def test_tiles_reach_the_device_and_come_back_in_order(device: torch.device) -> None:
    tiles = torch.randn(5, 3, 64, 64).split(1)
    arrived = []
    for tile in ahead(iter(tiles), device):
        assert tile.device.type == device.type
        arrived.append(to_host(tile @ torch.eye(64, device=device)))
    torch.testing.assert_close(torch.cat(arrived), torch.cat(tiles), rtol=1e-6, atol=1e-6)
    assert all(one.device.type == "cpu" for one in arrived)


def test_sums_of_norms_leave_the_device_by_themselves(device: torch.device) -> None:
    norms = nn.Sequential(*(nn.GroupNorm(2, 4) for _ in range(3))).to(device)
    with SharedNorms(norms).measuring() as sums:
        norms(torch.randn(1, 4, 8, 8, device=device))
    for one in sums:
        assert one is not None and one.device.type == "cpu"
        assert one.untyped_storage().nbytes() == 8 * one.numel(), "another process gets all of it"


def test_bands_on_the_device_are_the_cpus_picture(device: torch.device, folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    photo = Picture(cv2.resize(noise, (280, 330)), None, gray=False, metadata=Metadata())

    def levels(place: str) -> np.ndarray:
        upscaler = Upscaler.from_pretrained(folder, device=place, precision="fp32", tile=256)
        bands = upscaler.upscale_bands(photo, scale=1, steps=1)
        return np.concatenate([band.rgb for band in bands]).astype(int)

    assert np.abs(levels(str(device)) - levels("cpu")).max() <= SAME_LEVELS


@pytest.mark.gpu
def test_compiled_passes_in_cuda_graphs_are_the_cpus_pictures(folder: Path) -> None:
    plain = Upscaler.from_pretrained(folder, device="cpu", precision="fp32")
    graphs = Upscaler.from_pretrained(folder, device="cuda", precision="fp32", backend="compile")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)
    pictures = [*pictures, pictures[0, :24], pictures[1]]  # of another size, and one once more
    for picture in pictures:
        found, expected = (
            one.upscale(picture, scale=2, steps=4).astype(int) for one in (graphs, plain)
        )
        assert np.abs(found - expected).max() <= SAME_LEVELS


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
