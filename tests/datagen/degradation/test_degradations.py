"""The chain: applying it is deterministic, equals the same steps by hand, and shifts nothing."""

from __future__ import annotations

import io
import json
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from datagen.degradation.apply import apply_operations, degrade, degrade_small
from datagen.degradation.draw import draw_degradation
from datagen.degradation.masks import kept_pixels
from datagen.degradation.noise import gaussian_noise, poisson_noise
from datagen.degradation.parameters import (
    BlurParams,
    BoxParams,
    DegradationParams,
    DownscaleParams,
    GaussianNoiseParams,
    GreyParams,
    JpegParams,
    MaskParams,
    OperationParams,
    PoissonNoiseParams,
    ResizeBackParams,
    ResizeParams,
    SincParams,
    SkippedOperation,
    UsmParams,
)
from datagen.degradation.settings import DegradationSettings
from pipelines.recipes.load import dataset_recipe

_RECIPES = (
    *("realesrgan", "elir-faces", "elir-faces-code", "elir-sr8", "elir-denoising", "elir-bsr"),
    *("elir-inpainting", "elir-box-inpainting", "elir-colorization"),
)


def _settings(name: str) -> DegradationSettings:
    return dataset_recipe(name, {"sources": ["photos"], "output": "dataset"}).degradation


@pytest.mark.parametrize("name", ("demo", *_RECIPES))
def test_a_draw_survives_json_and_decides_every_pixel(name: str, photo: Any) -> None:
    hq = photo(3, width=128, height=96)
    rng = np.random.default_rng(1)
    for _ in range(8):
        drawn = draw_degradation(_settings(name), rng)
        again = DegradationParams.model_validate(json.loads(drawn.model_dump_json()))
        assert again == drawn
        results = []
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            results.append(degrade(hq, again))
        assert np.array_equal(results[0], results[1])
        assert results[0].shape == hq.shape and results[0].dtype == np.float32
        assert results[0].min() >= 0 and results[0].max() <= 1
        as_float = degrade(hq.astype(np.float32) / 255, drawn)
        assert np.abs(as_float - results[0]).mean() < 0.01


def _by_hand(hq: np.ndarray, drawn: DegradationParams) -> np.ndarray:
    """The chain step by step in float64, each step written as plainly as possible."""
    pixels, height, width = hq.astype(np.float64), hq.shape[0], hq.shape[1]
    for operation in drawn.operations:
        match operation:
            case BlurParams() | SincParams():
                kernel = operation.kernel()[..., None]
                pixels = ndimage.correlate(pixels, kernel, mode="mirror")
            case ResizeParams(relative_to="hq", factor=factor, mode=mode):
                pixels = _resized(pixels, height * factor, width * factor, mode)
            case ResizeParams(factor=factor, mode=mode):
                factor /= drawn.scale
                pixels = _resized(pixels, height * factor, width * factor, mode)
            case DownscaleParams(mode=mode):
                pixels = _resized(pixels, height / drawn.scale, width / drawn.scale, mode)
            case ResizeBackParams(mode=mode):
                pixels = np.clip(np.rint(pixels), 0, 255)
                pixels = _resized(pixels, height, width, mode)
            case GaussianNoiseParams(sigma=sigma, gray=gray, seed=seed):
                noise = gaussian_noise(pixels.shape, sigma=sigma, gray=gray, seed=seed)
                pixels = np.clip(pixels + noise, 0, 255)
            case PoissonNoiseParams(scale=scale, gray=gray, seed=seed):
                levels = pixels.astype(np.float32)
                noise = poisson_noise(levels, scale=scale, gray=gray, seed=seed)
                pixels = np.clip(pixels + noise, 0, 255)
            case MaskParams(fraction=fraction, seed=seed):
                pixels = pixels * kept_pixels(pixels.shape[:2], lost=fraction, seed=seed)
            case BoxParams(side=side, x=0.5, y=0.5):
                half, (rows, columns) = (
                    side * min(pixels.shape[:2]) / 2,
                    np.indices(pixels.shape[:2]),
                )
                down = np.abs(rows + 0.5 - pixels.shape[0] / 2) < half
                across = np.abs(columns + 0.5 - pixels.shape[1] / 2) < half
                pixels = np.where((down & across)[..., None], 0, pixels)
            case GreyParams():
                pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
            case JpegParams(quality=quality):
                pixels = _jpeg_by_pillow(np.clip(np.rint(pixels), 0, 255), quality)
            case SkippedOperation():
                continue
    return np.clip(pixels / 255, 0, 1)


def _resized(pixels: np.ndarray, height: float, width: float, mode: str) -> np.ndarray:
    size = max(1, round(width)), max(1, round(height))
    flags = {"nearest": 6, "area": 3, "bilinear": 1, "bicubic": 2}
    if mode in flags:
        return cv2.resize(pixels.astype(np.float32), size, interpolation=flags[mode])
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(pixels, 2, 0)]
    kernel = Image.Resampling[mode.removesuffix("_antialiased").upper()]
    return np.stack([np.asarray(plane.resize(size, kernel)) for plane in planes], 2)


def _jpeg_by_pillow(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(
        stream, format="JPEG", quality=quality, subsampling="4:2:0"
    )
    return np.asarray(Image.open(stream)).astype(np.float64)


@pytest.mark.parametrize("name", ("demo", *_RECIPES))
def test_chains_equal_the_same_steps_by_hand(name: str, photo: Any) -> None:
    """Except for what rounding to 8 bits makes of differences far below a level."""
    hq = photo(7, width=104, height=88)
    rng = np.random.default_rng(2)
    for _ in range(12):
        drawn = draw_degradation(_settings(name), rng)
        # Shot noise jumps with the number of levels, which a difference of 1e-4 may change.
        kept = [item for item in drawn.operations if not isinstance(item, PoissonNoiseParams)]
        drawn = drawn.model_copy(update={"operations": tuple(kept)})
        difference = np.abs(degrade(hq, drawn) - _by_hand(hq, drawn)) * 255
        assert difference.mean() < 0.25 and np.quantile(difference, 0.9) < 1.1


@pytest.mark.parametrize("strength,kernel_size,threshold", [(0.5, 51, 10.0), (2.0, 9, 3.0)])
def test_usm_is_real_esrgans(
    strength: float, kernel_size: int, threshold: float, photo: Any
) -> None:
    """The published filter of images in [0, 1] in SciPy: twice the same blur, edges softened."""
    hq = photo(5, width=90, height=70)
    usm = UsmParams(strength=strength, kernel_size=kernel_size, threshold=threshold)
    found = apply_operations(hq.astype(np.float32), (usm,), scale=1, size=(90, 70)) / 255

    def blurred(image: np.ndarray) -> np.ndarray:
        radius = (kernel_size - 1) // 2
        sigma = 0.3 * (radius - 1) + 0.8, 0.3 * (radius - 1) + 0.8, 0
        return ndimage.gaussian_filter(image, sigma, mode="mirror", radius=(radius, radius, 0))

    image = hq / 255
    residual = image - blurred(image)
    soft = blurred((np.abs(residual) * 255 > threshold).astype(float))
    expected = soft * np.clip(image + strength * residual, 0, 1) + (1 - soft) * image
    assert np.abs(found - expected).max() < 0.02  # a residual near the threshold falls either way
    assert np.abs(found - expected).mean() < 2e-4 and np.abs(found - image).mean() > 0.003


@pytest.mark.parametrize("x,y,left,top", [(0, 0, 0, 0), (1, 1, 60, 30), (0.5, 0.5, 30, 15)])
def test_a_box_is_a_square_of_the_shorter_side(x: float, y: float, left: int, top: int) -> None:
    hq = np.full((60, 90, 3), 200, np.uint8)
    small = degrade_small(
        hq, DegradationParams(scale=1, operations=(BoxParams(side=0.5, x=x, y=y),))
    )
    expected = hq.copy()
    expected[top : top + 30, left : left + 30] = 0
    assert np.array_equal(small, expected) and hq.min() == 200


@pytest.mark.parametrize("quality", [1, 30, 61, 95, 100])
def test_jpeg_is_that_of_pillow(quality: int, photo: Any) -> None:
    hq = photo(4, width=61, height=47)
    drawn = DegradationParams(scale=1, operations=(JpegParams(quality=quality),))
    expected = _jpeg_by_pillow(hq, quality)
    assert np.abs(degrade_small(hq, drawn) - expected).max() <= 1


@pytest.mark.parametrize("relative_to,factor,size", [("hq", 0.33, (32, 42)), ("lq", 1.2, (29, 38))])
def test_resize_goes_to_an_explicit_size(relative_to: Any, factor: float, size: Any) -> None:
    """96 x 128 times 0.33, or over 4 times 1.2, each rounded once."""
    hq = np.full((96, 128, 3), 120, np.uint8)
    operations: list[OperationParams] = [
        ResizeParams(relative_to=relative_to, factor=factor, mode="area"),
        GaussianNoiseParams(sigma=30, gray=False, seed=4),
    ]
    found = degrade_small(hq, DegradationParams(scale=4, operations=tuple(operations)))
    assert found.shape == (*size, 3)


def test_a_scale_below_one_enlarges(photo: Any) -> None:
    drawn = draw_degradation(_settings("elir-faces"), np.random.default_rng(0), scale=0.8)
    hq = photo(3, width=64, height=48)
    assert degrade_small(hq, drawn).shape == (60, 80, 3)
    assert degrade(hq, drawn).shape == hq.shape


def test_inpainting_leaves_a_tenth_of_the_pixels(photo: Any) -> None:
    hq = np.maximum(photo(3, width=64, height=50), 1)
    drawn = draw_degradation(_settings("elir-inpainting"), np.random.default_rng(0))
    quiet = [item for item in drawn.operations if not isinstance(item, GaussianNoiseParams)]
    lq = degrade(hq, drawn.model_copy(update={"operations": tuple(quiet)}))
    kept = lq.any(axis=2)
    assert kept.sum() == 64 * 50 - int(0.9 * 64 * 50)
    assert np.allclose(lq[kept], hq[kept] / 255, atol=1e-6)


def test_denoising_is_clipped_gaussian_noise(photo: Any) -> None:
    hq = np.full((200, 200, 3), 128, np.uint8)
    drawn = draw_degradation(_settings("elir-denoising"), np.random.default_rng(0))
    noise = degrade(hq, drawn) - 128 / 255
    inside = np.abs(noise) < 0.4
    assert 0.73 < inside.mean() < 0.76  # of N(0, 0.35): erf(0.4 / 0.35 / sqrt 2) = 0.747
    assert drawn.scale == 1 and noise.max() == pytest.approx(127 / 255)


def test_small_image_is_the_chain_before_the_resize_back(photo: Any) -> None:
    hq = photo(3, width=128, height=96)
    operations = (
        DownscaleParams(mode="area"),
        GaussianNoiseParams(sigma=4, gray=False, seed=1),
        JpegParams(quality=60),
        ResizeBackParams(mode="bicubic"),
    )
    drawn = DegradationParams(scale=3.3, operations=operations)
    small = degrade_small(hq, drawn)
    assert small.shape == (round(96 / 3.3), round(128 / 3.3), 3) and small.dtype == np.uint8
    enlarged = cv2.resize(small.astype(np.float32), (128, 96), interpolation=cv2.INTER_CUBIC)
    assert np.allclose(degrade(hq, drawn), np.clip(enlarged / 255, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "down,up",
    [
        *[(mode, "bicubic") for mode in ("nearest", "area", "bilinear", "bicubic")],
        *[("area", mode) for mode in ("nearest", "area", "bilinear")],
    ],
)
@pytest.mark.parametrize("scale", [1.5, 3.7, 16.0])
def test_lq_is_registered(down: Any, up: Any, scale: float) -> None:
    """The center of mass of a blob stays, up to the half pixel that nearest cannot represent."""
    y, x = np.mgrid[:256, :256]
    blob = np.exp(-((x - 127.3) ** 2 + (y - 100.2) ** 2) / (2 * 30.0**2)).astype(np.float32)
    operations = (DownscaleParams(mode=down), ResizeBackParams(mode=up))
    drawn = DegradationParams(scale=scale, operations=operations)
    lq = degrade(np.repeat(blob[..., None], 3, axis=2), drawn)[..., 0]
    for axis in (x, y):
        shift = (lq * axis).sum() / lq.sum() - (blob * axis).sum() / blob.sum()
        assert abs(shift) < (0.55 if down == "nearest" else 0.1)


def test_scale_one_without_operations_is_the_image(photo: Any) -> None:
    hq = photo(5)
    operations = (DownscaleParams(mode="bicubic"), ResizeBackParams(mode="bicubic"))
    drawn = DegradationParams(scale=1, operations=operations)
    assert np.allclose(degrade(hq, drawn), hq / 255, atol=1e-6)
    assert np.array_equal(degrade_small(hq, drawn), hq)


def test_tiny_images_can_be_degraded(photo: Any) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        drawn = draw_degradation(DegradationSettings(), rng)
        assert np.isfinite(degrade(photo(1, width=9, height=8), drawn)).all()
