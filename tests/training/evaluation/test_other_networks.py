"""Networks of others as baselines: tiles, other factors, wrong files, and both packages where they
are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from skimage import data
from torch import nn
from torch.nn import functional

from datagen.errors import FlowmapsrError
from training.evaluation.baselines import baseline_method
from training.evaluation.measure import NoResult
from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.other_networks import extras
from training.evaluation.other_networks.enlarger import Enlarger
from training.evaluation.other_networks.ncnn_network import Ends, find_ends, ncnn_network
from training.evaluation.other_networks.spandrel_network import spandrel_network
from training.evaluation.photos import DegradedPhoto
from training.evaluation.scores import score
from training.settings.evaluation import PRESETS, EvaluationSettings, NcnnNetwork, SpandrelNetwork

SMALL = data.astronaut()[60:121, 180:250]  # 70x61
PHOTO = DegradedPhoto("a.png", SMALL.repeat(2, axis=0).repeat(2, axis=1), SMALL)
NOT_NCNN = "ncnn is not installed"
needs_ncnn = pytest.mark.skipif(importlib.util.find_spec("ncnn") is None, reason=NOT_NCNN)
needs_spandrel = pytest.mark.skipif(
    importlib.util.find_spec("spandrel") is None, reason="spandrel is not installed"
)


def _blurred_and_doubled(picture: np.ndarray) -> np.ndarray:
    """A network that sees 16 pixels to every side."""
    padded = np.pad(picture, ((16, 16), (16, 16), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (33, 33), axis=(0, 1))
    return windows.mean(axis=(-2, -1)).repeat(2, axis=0).repeat(2, axis=1)


def test_a_picture_in_tiles_is_the_same_as_whole() -> None:
    whole = Enlarger(2, _blurred_and_doubled, tile=None).enlarged(SMALL)
    assert whole.shape == (122, 140, 3) and whole.std() > 10
    for tile in (16, 33, 64):
        assert np.array_equal(Enlarger(2, _blurred_and_doubled, tile).enlarged(SMALL), whole)


def test_another_factor_is_resized_and_a_failure_is_told() -> None:
    doubled = Enlarger(2, lambda picture: picture.repeat(2, axis=0).repeat(2, axis=1))
    made = doubled.restore(PHOTO)
    assert made.flaw is None and np.array_equal(made.picture, PHOTO.original)
    larger = DegradedPhoto("b.png", SMALL.repeat(4, axis=0).repeat(4, axis=1), SMALL)
    made = doubled.restore(larger)
    expected = Image.fromarray(PHOTO.original).resize((280, 244), Image.Resampling.BICUBIC)
    assert np.array_equal(made.picture, np.asarray(expected))
    assert made.flaw == ("enlarges by 2, resized by bicubic interpolation:", "b.png")
    with pytest.raises(NoResult) as none:
        Enlarger(3, lambda picture: picture).restore(PHOTO)
    assert none.value.flaw.what == "failed for"
    assert "a.png (ValueError: (61, 70, 3) of (61, 70, 3), not (183, 210, 3))" in none.value.flaw.of


def test_settings_refuse_pickles_and_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    for baseline, why in (
        ({"kind": "spandrel", "name": "x", "file": "/x.pth"}, "never opened: convert"),
        ({"kind": "spandrel", "name": "x", "file": "s3://a/x.safetensors"}, "copy it here"),
        ({"kind": "ncnn", "name": "bicubic", "folder": "/x"}, "name of an interpolation"),
    ):
        with pytest.raises(ValueError, match=why):
            EvaluationSettings.model_validate({"photos": "/photos", "baselines": [baseline]})
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    missing = NcnnNetwork(kind="ncnn", name="x4plus", folder="/x")
    with pytest.raises(FlowmapsrError, match=r"x4plus needs .* pip install 'flowmapsr\[ncnn\]'"):
        baseline_method(missing, 4.0)


PARAM = """7767517
3 3
Input            data    0 1 data
Convolution      conv    1 1 data wide 0=12 1=1 5=1 6=36
PixelShuffle     shuffle 1 1 wide out0 0=2
"""


def _doubling(folder: Path, param: str = PARAM) -> Path:
    """A network of ncnn that repeats every pixel twice: a convolution to twelve planes, which are
    laid side by side."""
    folder.mkdir()
    (folder / "net.param").write_text(param)
    weights = np.zeros((12, 3), np.float32)
    weights[np.arange(12), np.arange(12) // 4] = 1
    flag = np.zeros(1, np.uint32)  # float32
    bias = np.zeros(12, np.float32)
    (folder / "net.bin").write_bytes(flag.tobytes() + weights.tobytes() + bias.tobytes())
    return folder


def test_the_ends_of_a_network_are_found() -> None:
    assert find_ends(PARAM, "x") == Ends("data", "out0")
    with pytest.raises(FlowmapsrError, match="1 pictures go in and 2 come out"):
        find_ends(PARAM + "Split s 1 1 data more\n", "x")
    for text, why in (("", "no text description"), (PARAM + "a b\n", "x is damaged")):
        with pytest.raises(FlowmapsrError, match=why):
            find_ends(text, "x")


@needs_ncnn
def test_a_network_of_ncnn_enlarges(tmp_path: Path) -> None:
    method = baseline_method(
        NcnnNetwork(kind="ncnn", name="twice", folder=str(_doubling(tmp_path / "net"))), 2.0
    )
    made = method.make(PHOTO)
    assert made.flaw is None and np.array_equal(made.picture, PHOTO.original)


@needs_ncnn
def test_a_wrong_folder_of_ncnn_is_named_and_other_rows_are_made(tmp_path: Path) -> None:
    odd = PARAM.replace("0=2\n", "0=2\nPadding pad 1 1 out0 last 0=1\n").replace(
        "3 3\n", "4 4\n", 1
    )
    folders = {
        "must hold one .param": tmp_path,
        "does not exist": _doubling(tmp_path / "no-weights"),
        "no text description": _doubling(tmp_path / "binary", "\0\1\2"),
        "do not belong together": _doubling(tmp_path / "cut"),
        "enlarges by a whole factor": _doubling(tmp_path / "odd", odd),
    }
    (tmp_path / "no-weights/net.bin").unlink()
    (tmp_path / "cut/net.bin").write_bytes(bytes(20))
    for why, folder in folders.items():
        with pytest.raises(FlowmapsrError, match=why):
            ncnn_network(str(folder))
    metrics = find_metrics((), PRESETS["plain"])
    wrong = NcnnNetwork(kind="ncnn", name="wrong", folder=str(tmp_path))
    scores = score([PHOTO], [baseline_method(wrong, 2.0)], 2.0, metrics)
    assert scores.rows == ()
    (note,) = scores.notes
    assert note.startswith(f"wrong at x2: {tmp_path} must hold one .param")
    assert note.endswith("no result for a.png")


@needs_spandrel
def test_a_checkpoint_is_run_as_its_own_network(tmp_path: Path) -> None:
    """Real-ESRGAN's compact network, built here by hand."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 1, 1), nn.PReLU(8), nn.Conv2d(8, 8, 3, 1, 1), nn.PReLU(8)]
    body = nn.Sequential(*layers, nn.Conv2d(8, 12, 3, 1, 1))
    path = tmp_path / "compact.safetensors"
    named = {f"body.{name}": one for name, one in body.state_dict().items()}
    safetensors.torch.save_file(named, path)
    settings = SpandrelNetwork(kind="spandrel", name="compact", file=str(path))
    made = baseline_method(settings, 2.0).make(PHOTO)
    pixels = torch.from_numpy(SMALL.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        expected = functional.pixel_shuffle(body(pixels), 2)
        expected += functional.interpolate(pixels, scale_factor=2, mode="nearest")
    levels = (expected[0].permute(1, 2, 0) * 255).round().clip(0, 255).to(torch.uint8).numpy()
    assert np.abs(made.picture.astype(int) - levels).max() <= 1
    safetensors.torch.save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    gray = {"body.0.weight": torch.zeros(8, 1, 3, 3), "body.4.weight": torch.zeros(4, 8, 3, 3)}
    gray["body.4.bias"] = torch.zeros(4)
    safetensors.torch.save_file({**named, **gray}, tmp_path / "gray.safetensors")
    for name, why in (
        ("other", "no architecture that spandrel knows"),
        ("cut", "no safetensors file"),
        ("gray", "from 1 to 1 channels"),
    ):
        with pytest.raises(FlowmapsrError, match=why):
            spandrel_network(str(tmp_path / f"{name}.safetensors"))
