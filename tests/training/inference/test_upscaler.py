"""Inference on real model folders: sizes, gray, alpha, faulty folders; the evaluation table."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.tiles.boxes import Box
from tests.support.models import saved_model
from training.evaluation.evaluate import evaluate
from training.evaluation.photos import degraded_photos
from training.inference.pictures.decode import Picture
from training.inference.pictures.metadata import Metadata
from training.inference.pictures.pixels import bicubic
from training.inference.tiles.tiler import Tiler
from training.inference.trained import usual_color_fix
from training.inference.upscaler import Upscaler
from training.settings.evaluation import EvaluationSettings
from training.settings.model import ModelSettings
from training.tracking.evaluation_log import evaluation_metrics
from training.weights.model_folder import find_model


@pytest.fixture
def untrained(tmp_path: Path, tiny_model: ModelSettings) -> Path:
    return saved_model(tmp_path / "model", tiny_model, trained=False)


@pytest.fixture
def trained(tmp_path: Path, tiny_model: ModelSettings) -> Path:
    return saved_model(tmp_path / "trained", tiny_model, trained=True)


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (16, 16), (33, 50)])
@pytest.mark.parametrize("scale", [1.0, 2.5, 4.0])
def test_an_untrained_model_is_bicubic_at_any_size(
    untrained: Path, height: int, width: int, scale: float
) -> None:
    image = _picture(height, width)
    upscaler = Upscaler.from_pretrained(untrained)
    result = upscaler.upscale(image, scale=scale, steps=2)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    assert result.shape == (size[1], size[0], 3)
    assert np.array_equal(result, bicubic(image, size))


def test_a_model_folder_gives_back_the_same_network(
    trained: Path, tiny_model: ModelSettings
) -> None:
    image = _picture(12, 12)
    first = Upscaler.from_pretrained(trained).upscale(image, scale=2, steps=2)
    second = Upscaler.from_pretrained(trained).upscale(image, scale=2, steps=2)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, bicubic(image, (24, 24)))


def test_what_is_decoded_of_a_picture_has_the_bits_of_the_whole(trained: Path) -> None:
    """Neither the margin around it, nor what fills its sides up, is decoded."""
    restorer = Upscaler.from_pretrained(trained, device="cpu").restorer
    pixels = 2 * torch.rand(1, 3, 256, 224, generator=torch.Generator().manual_seed(0)) - 1
    inside, restored = (
        Box(64, 183, 64, 145),
        partial(restorer, pixels, steps=2, on_step=lambda: None),
    )
    with torch.inference_mode():
        whole, part = (restored(in_tiles=Tiler(), inside=box) for box in (None, inside))
    assert torch.equal(part, inside.of(whole))


def test_bf16_changes_a_picture_by_rounding_only(trained: Path) -> None:
    image = _picture(12, 12)
    precise = Upscaler.from_pretrained(trained, precision="fp32")
    rounded = Upscaler.from_pretrained(trained, precision="bf16")
    expected = precise.upscale(image, scale=2, steps=2).astype(int)
    result = rounded.upscale(image, scale=2, steps=2).astype(int)
    assert 0 < np.abs(result - expected).max() <= 12 and np.abs(result - expected).mean() < 1
    default = Upscaler.from_pretrained(trained, device="cpu").upscale(image, scale=2, steps=2)
    assert np.array_equal(default, expected)


def test_the_guidance_strength_is_the_models_own_unless_it_is_chosen(
    tmp_path: Path, trained: Path, tiny_model: ModelSettings
) -> None:
    settings = tiny_model.model_copy(update={"guidance_conditioning": True})
    guided = saved_model(tmp_path / "guided", settings, trained=True)
    path = guided / "config.json"
    config = {**json.loads(path.read_text()), "guidance_strength": 2.25}
    path.write_text(json.dumps(config))
    image = _picture(12, 12)

    def result(guidance: float | None) -> np.ndarray:
        return Upscaler.from_pretrained(guided, guidance=guidance).upscale(image, scale=2, steps=1)

    assert np.array_equal(result(None), result(2.25))
    assert not np.array_equal(result(None), result(1.0))
    with pytest.raises(FlowmapsrError, match=r"trained.*model\.guidance_conditioning=true"):
        Upscaler.from_pretrained(trained, guidance=2.0)


def test_gray_stays_gray_and_alpha_is_kept(trained: Path) -> None:
    upscaler = Upscaler.from_pretrained(trained)
    gray = Image.fromarray(_picture(10, 12)[..., 0])
    assert upscaler.upscale(gray, scale=2, steps=1).mode == "L"
    alpha = np.zeros((10, 12), np.uint8)
    alpha[:, 6:] = 255
    color = Image.fromarray(_picture(10, 12))
    color.putalpha(Image.fromarray(alpha))
    result = upscaler.upscale(color, scale=2, steps=1)
    assert (result.mode, result.size) == ("RGBA", (24, 20))
    kept = np.asarray(result)[..., 3]
    assert kept[:, :8].max() == 0 and kept[:, 16:].min() == 255


@pytest.mark.parametrize("deep", [False, True])
def test_what_is_hidden_does_not_shine_through(untrained: Path, deep: bool) -> None:
    """An opaque disc on nothing, enlarged, over black and over white: no seam of what a file has
    where nothing is seen."""
    y, x = np.mgrid[:40, :40]
    alpha = np.where((x - 19.5) ** 2 + (y - 19.5) ** 2 < 150, 255, 0).astype(np.uint8)
    disc = np.where(alpha[..., None] > 0, np.uint8([200, 120, 40]), np.uint8([0, 255, 0]))
    picture = Picture(disc, alpha, False, Metadata())
    if deep:
        levels = (one.astype(np.uint16) * np.uint16(257) for one in (disc, alpha))
        picture = Picture(*levels, False, Metadata())
    large = Upscaler.from_pretrained(untrained).upscale_picture(picture, scale=4)
    assert large.alpha is not None and large.rgb.dtype == picture.rgb.dtype
    unit = 257 if deep else 1
    weight = large.alpha[..., None] / (255 * unit)
    for background in (0, 255):
        over = large.rgb / unit * weight + background * (1 - weight)
        small = np.where(alpha[..., None] > 0, disc, background).astype(np.uint8)
        expected = cv2.resize(small, (160, 160), interpolation=cv2.INTER_CUBIC)
        edge = (weight > 0) & (weight < 1)  # beyond, the interpolation of `small` overshoots
        assert np.abs(over - expected)[edge[..., 0]].max() <= 2


def test_colors_are_the_networks_where_it_learned_to_make_them() -> None:
    def usual(operation: dict[str, object]) -> str:
        operations = ({"kind": "downscale"}, operation, {"kind": "resize_back"})
        chain = {"scale": (1, 8), "operations": operations}
        return usual_color_fix(DegradationSettings.model_validate(chain))

    assert usual_color_fix(DegradationSettings(scale=(1, 8))) == "wavelet"
    assert usual({"kind": "noise", "gaussian_sigma": (1, 30)}) == "wavelet"
    for making in ({"kind": "grey"}, {"kind": "noise", "gaussian_sigma": (64, 64)}):
        assert usual(making) == "off"


def test_a_run_folder_means_its_last_finished_stage(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "stages" / "warmup").mkdir(parents=True)
    stages = [{"name": "warmup"}, {"name": "distill"}]
    (run / "recipe.json").write_text(json.dumps({"stages": stages}))
    with pytest.raises(FlowmapsrError, match="no stage of the run"):
        find_model(run)
    trained.rename(run / "stages" / "warmup" / "model")
    assert find_model(run) == run / "stages" / "warmup" / "model"


def test_folders_that_hold_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match="there is no model folder"):
        Upscaler.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FlowmapsrError, match=r"neither config\.json"):
        Upscaler.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(FlowmapsrError, match=r"config\.json is a file; give the folder"):
        Upscaler.from_pretrained(tmp_path / "config.json")
    with pytest.raises(FlowmapsrError, match="is a diffusers UNet2DConditionModel, not a model of"):
        Upscaler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version: .*not 2"),
        ({"codec_fingerprint": "other"}, "weights have changed"),
        ({"latent_channels": 64}, "does not hold the weights"),
        ({"model": {"block_channels": "wide"}}, "block_channels"),
    ],
)
def test_a_model_of_another_version_or_shape_is_a_clear_error(
    untrained: Path, change: dict[str, object], message: str
) -> None:
    path = untrained / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FlowmapsrError, match=message):
        Upscaler.from_pretrained(untrained)


def test_weights_that_are_not_finite_are_refused_before_a_picture_is_made(untrained: Path) -> None:
    path = untrained / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["unet.conv_in.bias"][0] = float("nan")
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(FlowmapsrError, match=rf"{path}: 1 of .* of unet.conv_in.bias are not fin"):
        Upscaler.from_pretrained(untrained)


def test_truncated_weights_are_a_clear_error(untrained: Path) -> None:
    path = untrained / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FlowmapsrError, match=r"model\.safetensors is truncated"):
        Upscaler.from_pretrained(untrained)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "held-out"
    folder.mkdir()
    for seed in range(2):
        Image.fromarray(_picture(67, 90, seed)).save(folder / f"{seed}.png")
    return folder


def test_the_evaluation_table_compares_with_bicubic(untrained: Path, photos: Path) -> None:
    settings = EvaluationSettings(photos=str(photos), scales=(2.0, 4.0), steps=(1, 2))
    rows = evaluate(str(untrained), settings).rows
    assert [(row.method, row.scale, row.steps) for row in rows] == [
        ("bicubic", 2.0, 0),
        ("flowmapsr", 2.0, 1),
        ("flowmapsr", 2.0, 2),
        ("bicubic", 4.0, 0),
        ("flowmapsr", 4.0, 1),
        ("flowmapsr", 4.0, 2),
    ]
    for bicubic_row, *ours in (rows[:3], rows[3:]):
        for row in ours:  # an untrained model returns its input
            assert (row.psnr, row.ssim) == (bicubic_row.psnr, bicubic_row.ssim)
    by_hand = [
        peak_signal_noise_ratio(p.original, bicubic(p.small, p.original.shape[1::-1]))
        for p in degraded_photos(settings, DegradationSettings(scale=(1, 8)), 4.0)
    ]
    assert rows[3].psnr == pytest.approx(np.mean(by_hand))


def test_other_baselines_stand_beside_bicubic_and_the_lq_is_written(
    untrained: Path, photos: Path, tmp_path: Path
) -> None:
    settings = EvaluationSettings.model_validate(
        {"photos": str(photos), "scales": [4], "steps": [1], "baselines": [{"kind": "lanczos"}]}
    )
    rows = evaluate(str(untrained), settings, lq_folder=str(tmp_path / "lq")).rows
    assert [row.method for row in rows] == ["bicubic", "lanczos", "flowmapsr"]
    assert rows[1].psnr != rows[0].psnr
    first, *_ = degraded_photos(settings, DegradationSettings(scale=(1, 8)), 4.0)
    written = np.asarray(Image.open(tmp_path / "lq/x4/0.png"))
    assert np.array_equal(written, first.small)
    named = {"kind": "pictures", "name": "flowmapsr", "folder": str(tmp_path / "lq/x4")}
    clash = settings.model_validate({**settings.model_dump(), "baselines": [named]})
    with pytest.raises(FlowmapsrError, match="flowmapsr has the name of the model"):
        evaluate(str(untrained), clash)
    other = {**named, "name": "theirs"}
    again = settings.model_validate({**settings.model_dump(), "baselines": [other]})
    logged = evaluation_metrics(evaluate(str(untrained), again).rows)
    assert {"eval/psnr_x4_bicubic", "eval/psnr_x4_theirs", "eval/psnr_x4_nfe1"} < set(logged)


def test_an_evaluation_with_a_color_fix_measures_what_upscaling_makes(
    trained: Path, photos: Path
) -> None:
    base = {"photos": str(photos), "scales": [4], "steps": [1]}
    fixed, plain = (
        evaluate(str(trained), EvaluationSettings.model_validate({**base, "color_fix": how})).rows
        for how in ("wavelet", "off")
    )
    shown = degraded_photos(
        EvaluationSettings.model_validate(base), DegradationSettings(scale=(1, 8)), 4.0
    )
    upscaler = Upscaler.from_pretrained(trained, device="cpu")
    by_hand = []
    for photo in shown:
        assert photo.original is not None
        made = upscaler.upscale(photo.small, scale=4, steps=1, color_fix="wavelet")
        by_hand.append(peak_signal_noise_ratio(photo.original, made))
    assert fixed[1].psnr == pytest.approx(np.mean(by_hand), abs=1e-9)
    assert fixed[1].psnr != plain[1].psnr
    assert fixed[0].psnr == plain[0].psnr, "bicubic has no colors to give back"


def test_every_evaluation_degrades_alike(untrained: Path, photos: Path) -> None:
    settings = EvaluationSettings(photos=str(photos), scales=(4.0,), steps=(1,))
    chain = DegradationSettings(scale=(1, 8))
    first, second = (
        [photo.small for photo in degraded_photos(settings, chain, 4.0)] for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].shape == (16, 22, 3)


def test_a_photo_too_small_for_the_scale_is_named(untrained: Path, photos: Path) -> None:
    Image.fromarray(_picture(9, 9)).save(photos / "tiny.png")
    settings = EvaluationSettings(photos=str(photos), scales=(4.0,), steps=(1,))
    found = evaluate(str(untrained), settings)
    assert [row.photo for row in found.pictures] == ["0.png", "1.png"] * 2
    (note,) = found.notes
    assert note == f"{photos}/tiny.png: too small to evaluate at scale 4 (9x9)"
    for photo in ("0.png", "1.png"):
        (photos / photo).unlink()
    with pytest.raises(FlowmapsrError, match="no photo to evaluate.*too small"):
        evaluate(str(untrained), settings)


def test_a_picture_in_tiles_is_nearly_that_in_one_piece(trained: Path) -> None:
    image = _picture(150, 230)
    whole = Upscaler.from_pretrained(trained, device="cpu", tile=4096)
    tiled = Upscaler.from_pretrained(trained, device="cpu", tile=256)
    first, second = (one.upscale(image, scale=2, steps=2) for one in (whole, tiled))
    assert second.shape == first.shape and not np.array_equal(first, second)
    change = np.abs(first.astype(int) - bicubic(image, (460, 300))).mean()
    assert np.abs(second.astype(int) - first).mean() < 0.5 * change
