"""Pictures whose results come in rows: what whole ones would be, in little memory, or nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageCms

from datagen.errors import FlowmapsrError
from tests.support.launch import ForkedLauncher, found_by
from tests.support.models import saved_model
from tests.support.small_disk import DiskMaker
from training.flowmap.system import FlowMapRestorer
from training.inference import enlarger
from training.inference.batch import UpscaleReport, upscale_all
from training.inference.files import UpscaleSettings
from training.inference.jobs import plan_jobs
from training.inference.pictures.decode import Picture, read_picture
from training.inference.pictures.metadata import Metadata
from training.inference.upscaler import Upscaler
from training.inference.watch import Watch
from training.settings.evaluation import ColorFix
from training.settings.model import ModelSettings

STREAMED = 20_000
"""Pixels of the largest result that is held whole in these tests."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ModelSettings(
        block_channels=(16, 16),
        layers_per_block=1,
        transformer_layers=(0, 0),
        attention_heads=(2, 2),
        norm_groups=4,
    )
    return saved_model(tmp_path_factory.mktemp("streaming") / "model", settings, trained=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlarger, "LARGEST_WHOLE", STREAMED)


def photo(height: int, width: int, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, channels), dtype=np.uint8)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return fine.reshape(height, width, channels).astype(dtype) * (np.iinfo(dtype).max // 255)


@pytest.mark.parametrize(
    ("color_fix", "scale", "channels", "dtype"),
    [
        ("wavelet", 4.0, 3, np.uint8),
        ("lab", 2.5, 3, np.uint16),
        ("off", 1.0, 4, np.uint8),
        ("wavelet", 1.7, 1, np.uint16),
    ],
)
def test_bands_are_the_whole_picture(
    model: Path, color_fix: ColorFix, scale: float, channels: int, dtype: Any
) -> None:
    """The same tiles of the network: nothing may differ but by rounding."""
    pixels = photo(300, 180, channels, dtype)
    rgb = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels[..., :3]
    alpha = pixels[..., 3] if channels == 4 else None
    picture = Picture(np.ascontiguousarray(rgb), alpha, channels == 1, Metadata())
    upscaler = Upscaler.from_pretrained(model, device="cpu", tile=256)
    whole = upscaler.upscale_picture(picture, scale=scale, color_fix=color_fix)
    told: list[float] = []
    watch = Watch(told.append)
    bands = list(upscaler.upscale_bands(picture, scale=scale, watch=watch, color_fix=color_fix))
    difference = np.concatenate([band.rgb for band in bands]).astype(int) - whole.rgb
    assert np.abs(difference).max() <= 2 * (np.iinfo(dtype).max // 255)
    assert np.abs(difference).mean() < 0.02 * (np.iinfo(dtype).max // 255)
    assert len(bands) > 1
    assert told == sorted(told) and len([share for share in told if share > 2 / 3]) > 1
    if alpha is not None:
        assert whole.alpha is not None
        alphas = [band.alpha for band in bands if band.alpha is not None]
        assert np.array_equal(np.concatenate(alphas), whole.alpha)
    assert all(band.gray is whole.gray for band in bands)


def run(source: Path, target: Path, upscaler: Upscaler, **settings: Any) -> UpscaleReport:
    jobs = plan_jobs(str(source), str(target), overwrite=False, skip_existing=False).jobs
    return upscale_all(jobs, upscaler, UpscaleSettings(scale=2, **settings))


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A photo with all that a file can say beside its pixels."""
    exif = Image.Exif()
    exif[271] = "Maker"
    exif.get_ifd(34665)[33434] = 0.01
    pixels = Image.fromarray(photo(120, 90, 4))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels.save(tmp_path / "in.png", exif=exif, dpi=(300, 300), icc_profile=profile)
    return tmp_path / "in.png"


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_written_in_rows_keeps_what_one_written_whole_keeps(
    model: Path,
    described: Path,
    tmp_path: Path,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upscaler = Upscaler.from_pretrained(model, device="cpu")
    assert not run(described, tmp_path / f"whole.{suffix}", upscaler).failed
    monkeypatch.setattr(enlarger, "LARGEST_WHOLE", STREAMED)
    assert not run(described, tmp_path / f"rows.{suffix}", upscaler).failed
    data = (tmp_path / f"rows.{suffix}").read_bytes()
    assert suffix == "png" or data[:4] == b"II\x2b\0", "BigTIFF"
    whole, rows = (
        read_picture((tmp_path / f"{n}.{suffix}").read_bytes()) for n in ("whole", "rows")
    )
    assert rows.metadata == whole.metadata and rows.metadata.dpi == pytest.approx((300, 300), 1e-3)
    assert rows.metadata.exif[34665] == {33434: pytest.approx(0.01)}
    assert np.abs(rows.rgb.astype(int) - whole.rgb).max() <= 2
    assert rows.alpha is not None and whole.alpha is not None
    assert np.abs(rows.alpha.astype(int) - whole.alpha).max() <= 1


def test_formats_that_need_the_whole_picture_are_refused_with_the_fix(
    model: Path, described: Path, tmp_path: Path, small: None
) -> None:
    upscaler = Upscaler.from_pretrained(model, device="cpu")
    report = run(described, tmp_path / "out.jpg", upscaler)
    assert "180x240 pixels are too many" in report.failed[0][1]
    assert "at most 65500" in report.failed[0][1] and ".tif or .png" in report.failed[0][1]
    assert not (tmp_path / "out.jpg").exists()


def test_memory_holds_bands_where_it_does_not_hold_the_whole(model: Path, tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "in.png"), photo(512, 512))
    words = (str(model), str(tmp_path / "in.png"), str(tmp_path / "out.tif"))

    def ended(largest: int) -> dict[str, Any]:
        module, results = "tests.training.workers.limited_upscale", tmp_path / "ended.json"
        return found_by(module, *words, str(largest), "190", workers=1, results=results)

    assert "does not fit into memory" in ended(10**9)["failed"][0][1]
    assert not (tmp_path / "out.tif").exists()
    assert ended(10**6)["failed"] == []
    assert read_picture((tmp_path / "out.tif").read_bytes()).rgb.shape == (2048, 2048, 3)


def test_a_full_disk_is_named_and_leaves_nothing(
    model: Path, tmp_path: Path, small: None, small_disk: DiskMaker
) -> None:
    disk = small_disk(1 << 17)
    Image.effect_noise((200, 200), 100).convert("RGB").save(tmp_path / "in.png")
    upscaler = Upscaler.from_pretrained(model, device="cpu")
    with pytest.raises(FlowmapsrError, match=r"out\.tif.*free some space"):
        run(tmp_path / "in.png", disk / "out.tif", upscaler)
    assert not list(disk.iterdir())


def test_a_picture_that_fails_half_way_leaves_nothing_and_does_not_stop_the_others(
    model: Path, described: Path, tmp_path: Path, small: None
) -> None:
    upscaler = Upscaler.from_pretrained(model, device="cpu")
    restorer = upscaler.restorer
    assert isinstance(restorer, FlowMapRestorer)
    torch.nn.init.constant_(restorer.net.unet.conv_out.bias, float("nan"))
    report = run(described, tmp_path / "out.tif", upscaler)
    assert "not finite" in report.failed[0][1]
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_a_kill_leaves_nothing_under_the_name(model: Path, tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "in.png"), photo(640, 640))
    out = tmp_path / "out"
    words = [str(model), str(tmp_path / "in.png"), str(out / "out.png"), "1000", "4000", "-"]
    module = "tests.training.workers.limited_upscale"
    process = ForkedLauncher(module, words, workers=1, env=dict(os.environ))
    while not list(out.glob(".*.tmp")):
        assert process.poll() is None
        time.sleep(0.01)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.communicate(timeout=60)
    assert not (out / "out.png").exists()
