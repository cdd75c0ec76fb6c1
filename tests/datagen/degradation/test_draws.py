"""Every drawn parameter of every operation follows the reference's distribution (fixed seeds)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from datagen.degradation.apply import small_size
from datagen.degradation.draw import _weighted_choice, draw_degradation, draw_negative
from datagen.degradation.parameters import (
    BlurParams,
    BoxParams,
    DegradationParams,
    GaussianNoiseParams,
    JpegParams,
    MaskParams,
    PoissonNoiseParams,
    ResizeParams,
    SincParams,
    SkippedOperation,
)
from datagen.degradation.settings import (
    Blur,
    Box,
    Chain,
    DegradationSettings,
    Downscale,
    Either,
    Grey,
    Jpeg,
    Mask,
    Noise,
    Operation,
    Resize,
    ResizeBack,
    Sinc,
    Sometimes,
)
from pipelines.recipes.load import dataset_recipe

_COUNT = 4000
_ODD = tuple(range(7, 23, 2))


def _draws(operation: Operation, *, seed: int = 0) -> list[Any]:
    """The operation's record in many draws of a chain that starts with it."""
    settings = DegradationSettings(operations=(operation, Downscale(), ResizeBack()))
    rng = np.random.default_rng(seed)
    return [draw_degradation(settings, rng).operations[0] for _ in range(_COUNT)]


def test_weighted_choices_are_those_of_numpy() -> None:
    """To the last bit: the bytes of datasets depend on them."""
    rng = np.random.default_rng(0)
    for seed in range(300):
        count = int(rng.integers(1, 12))
        weights = (rng.random(count) ** 3 * 10).tolist()
        weights[int(rng.integers(count)) if count > 1 else 0] = 0.0 if count > 1 else 2.0
        ours, numpys = np.random.default_rng(seed), np.random.default_rng(seed)
        chances = np.array(weights) / np.sum(weights)
        for _ in range(20):
            expected = int(numpys.choice(count, p=chances))
            assert _weighted_choice(tuple(range(count)), weights, ours) == expected
        assert ours.random() == numpys.random(), "another number of draws"


def _assert_uniform(values: Sequence[float], low: float, high: float) -> None:
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def _assert_frequencies(values: Sequence[object], weights: dict[Any, float]) -> None:
    """Chi-square of the counts, and nothing but the expected values."""
    counts, total = Counter(values), sum(weights.values())
    assert set(counts) <= {value for value, weight in weights.items() if weight > 0}
    observed = [counts[value] for value in weights]
    expected = [weight / total * len(values) for weight in weights.values()]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def _equal(values: Sequence[Any]) -> dict[Any, float]:
    return {value: 1.0 for value in values}


@pytest.fixture(scope="module")
def blurs() -> list[BlurParams | SincParams]:
    return _draws(Blur(probability=1, sigma=(0.2, 3)))


def _plain(blurs: list[BlurParams | SincParams]) -> list[BlurParams]:
    return [blur for blur in blurs if isinstance(blur, BlurParams)]


def test_scales_are_uniform() -> None:
    rng = np.random.default_rng(0)
    scales = [draw_degradation(DegradationSettings(), rng).scale for _ in range(_COUNT)]
    _assert_uniform(scales, 1, 16)


@pytest.mark.parametrize(
    "law,evenly",
    [("uniform", float), ("uniform_side", lambda scale: 1 / scale), ("log_uniform", math.log)],
)
@pytest.mark.parametrize("bounds", [(0.8, 32.0), (3.0, 7.0), (3.3, 3.3)])
def test_scales_follow_their_law(
    law: Any, evenly: Callable[[float], float], bounds: tuple[float, float]
) -> None:
    settings, rng = DegradationSettings(scale=bounds, scale_law=law), np.random.default_rng(0)
    scales = [draw_degradation(settings, rng).scale for _ in range(_COUNT)]
    assert bounds[0] <= min(scales) and max(scales) <= bounds[1]
    if bounds[0] < bounds[1]:
        low, high = sorted(map(evenly, bounds))
        _assert_uniform([evenly(scale) for scale in scales], low, high)


@pytest.mark.parametrize("bounds,lowest", [((1, 16), 1), ((4, 4), 1), ((0.8, 32), 0.8)])
def test_the_scale_of_a_negative_is_uniform_up_to_the_lqs(
    bounds: tuple[float, float], lowest: float
) -> None:
    """Uniform from 1, or from the lower bound where that is less, to the LQ's."""
    settings, rng = DegradationSettings(scale=bounds), np.random.default_rng(0)
    shares = []
    for _ in range(_COUNT):
        lq = draw_degradation(settings, rng)
        negative = draw_negative(settings, rng, lq_scale=lq.scale)
        assert lowest <= negative.scale <= lq.scale
        shares.append((negative.scale - lowest) / (lq.scale - lowest))
    _assert_uniform(shares, 0, 1)


def test_at_scale_one_the_negative_has_scale_one() -> None:
    settings = DegradationSettings(scale=(1, 1))
    assert draw_negative(settings, np.random.default_rng(0), lq_scale=1).scale == 1


def test_kernel_kinds_and_sizes_have_their_frequencies(
    blurs: list[BlurParams | SincParams],
) -> None:
    _assert_frequencies([blur.kind for blur in blurs], {"sinc": 0.1, "blur": 0.9})
    _assert_frequencies([blur.shape for blur in _plain(blurs)], dict(Blur().shapes))
    _assert_frequencies([blur.size for blur in blurs], _equal(_ODD))


def test_sigma_and_angle_are_uniform(blurs: list[BlurParams | SincParams]) -> None:
    _assert_uniform([blur.sigma_x for blur in _plain(blurs)], 0.2, 3)
    rotated = [blur for blur in _plain(blurs) if blur.shape.endswith("aniso")]
    _assert_uniform([blur.sigma_y for blur in rotated], 0.2, 3)
    _assert_uniform([blur.theta for blur in rotated], -math.pi, math.pi)
    assert (
        abs(stats.spearmanr(*zip(*((b.sigma_x, b.sigma_y) for b in rotated), strict=True))[0]) < 0.1
    )
    for blur in _plain(blurs):
        assert blur.shape.endswith("aniso") or (blur.sigma_x == blur.sigma_y and blur.theta == 0)


def test_beta_is_uniform_on_either_side_of_one(blurs: list[BlurParams | SincParams]) -> None:
    """A coin between U(low, 1) and U(1, high), so a plateau has beta 1 half of the time."""
    by_family: dict[str, list[float]] = {"generalized": [], "plateau": [], "iso": [], "aniso": []}
    for blur in _plain(blurs):
        by_family[blur.shape.split("_")[0]].append(blur.beta)
    assert set(by_family["iso"] + by_family["aniso"]) == {1.0}
    generalized, plateau = by_family["generalized"], by_family["plateau"]
    _assert_frequencies([beta < 1 for beta in generalized], {True: 1, False: 1})
    _assert_uniform([beta for beta in generalized if beta < 1], 0.5, 1)
    _assert_uniform([beta for beta in generalized if beta >= 1], 1, 4)
    _assert_frequencies([beta == 1 for beta in plateau], {True: 1, False: 1})
    _assert_uniform([beta for beta in plateau if beta != 1], 1, 2)


def test_sinc_inside_a_blur_cuts_off_by_its_size() -> None:
    sincs = _draws(Blur(probability=1, sinc_probability=1))
    _assert_uniform([sinc.omega for sinc in sincs if sinc.size < 13], math.pi / 3, math.pi)
    _assert_uniform([sinc.omega for sinc in sincs if sinc.size >= 13], math.pi / 5, math.pi)


def test_kernels_have_the_statistics_of_the_reference(blurs: list[BlurParams | SincParams]) -> None:
    """As measured of 4,000 kernels of the reference: sum of k x^2, and negative lobes."""
    kernels = [blur.kernel() for blur in blurs]
    widths = [_variance(kernel) for kernel in kernels]
    # Standard errors at 4,000: 0.055 of the mean, about 2 % of a quantile; each has both samples'.
    assert abs(np.mean(widths) - 3.08) < 0.3
    assert abs(np.std(widths) - 3.46) < 0.5
    assert abs(np.quantile(widths, 0.1) - 0.07) < 0.03
    expected = [0.81, 2.45, 4.67, 7.22]
    assert np.allclose(np.quantile(widths, [0.25, 0.5, 0.75, 0.9]), expected, rtol=0.12)
    assert abs(np.mean([kernel.min() < 0 for kernel in kernels]) - 0.099) < 0.02


def _variance(kernel: np.ndarray) -> float:
    axis = np.arange(len(kernel)) - len(kernel) // 2
    return float((kernel * axis[None, :] ** 2).sum())


@pytest.mark.parametrize("operation", [Blur(probability=0.3), Sinc(probability=0.3)])
def test_an_operation_is_skipped_with_its_probability(operation: Blur | Sinc) -> None:
    skipped = [isinstance(drawn, SkippedOperation) for drawn in _draws(operation)]
    _assert_frequencies(skipped, {True: 0.7, False: 0.3})


def test_a_final_sinc_has_uniform_sizes_and_cutoffs() -> None:
    sincs = [drawn for drawn in _draws(Sinc(probability=0.8)) if isinstance(drawn, SincParams)]
    assert abs(len(sincs) / _COUNT - 0.8) < 0.03
    _assert_frequencies([sinc.size for sinc in sincs], _equal(_ODD))
    for narrow in (True, False):
        omegas = [sinc.omega for sinc in sincs if (sinc.size < 13) is narrow]
        _assert_uniform(omegas, math.pi / 3, math.pi)


@pytest.mark.parametrize("up,down,factor", [(0.2, 0.7, (0.15, 1.5)), (0.3, 0.4, (0.3, 1.2))])
def test_resize_factors_and_modes_have_their_frequencies(
    up: float, down: float, factor: tuple[float, float]
) -> None:
    operation = Resize(up_probability=up, down_probability=down, factor=factor)
    drawn: list[ResizeParams] = _draws(operation)
    signs = [int(np.sign(item.factor - 1)) for item in drawn]
    _assert_frequencies(signs, {1: up, -1: down, 0: 1 - up - down})
    _assert_uniform([item.factor for item in drawn if item.factor > 1], 1, factor[1])
    _assert_uniform([item.factor for item in drawn if item.factor < 1], factor[0], 1)
    _assert_frequencies([item.mode for item in drawn], _equal(operation.modes))


@pytest.mark.parametrize("operation", [Downscale(), ResizeBack()])
def test_interpolation_modes_are_equally_frequent(operation: Downscale | ResizeBack) -> None:
    rng = np.random.default_rng(1)
    where = 0 if isinstance(operation, Downscale) else 1
    settings = DegradationSettings(operations=(Downscale(), ResizeBack()))
    drawn: list[Any] = [draw_degradation(settings, rng).operations[where] for _ in range(_COUNT)]
    _assert_frequencies([item.mode for item in drawn], _equal(operation.modes))


def test_noise_kinds_and_strengths_have_their_frequencies() -> None:
    operation = Noise(probability=0.9, gaussian_sigma=(1, 30), poisson_scale=(0.05, 3))
    drawn = _draws(operation)
    kinds = {"skipped": 0.1, "gaussian_noise": 0.45, "poisson_noise": 0.45}
    _assert_frequencies([item.kind for item in drawn], kinds)
    gaussian = [item for item in drawn if isinstance(item, GaussianNoiseParams)]
    poisson = [item for item in drawn if isinstance(item, PoissonNoiseParams)]
    _assert_uniform([item.sigma for item in gaussian], 1, 30)
    _assert_uniform([item.scale for item in poisson], 0.05, 3)
    for noises in (gaussian, poisson):
        _assert_frequencies([item.gray for item in noises], {True: 0.4, False: 0.6})
        _assert_uniform([item.seed for item in noises], 0, 2**31)
        assert len({item.seed for item in noises}) == len(noises)


def test_jpeg_qualities_are_equally_frequent() -> None:
    qualities = [item.quality for item in _draws(Jpeg()) if isinstance(item, JpegParams)]
    _assert_frequencies(qualities, _equal(range(30, 96)))


def test_mask_fractions_are_uniform() -> None:
    drawn: list[MaskParams] = _draws(Mask(fraction=(0.2, 0.6)))
    _assert_uniform([item.fraction for item in drawn], 0.2, 0.6)
    _assert_uniform([item.seed for item in drawn], 0, 2**31)


def test_boxes_have_uniform_sides_and_places() -> None:
    boxes: list[BoxParams] = _draws(Box(side=(0.2, 0.6), position="random"))
    for values, low, high in (
        ([box.side for box in boxes], 0.2, 0.6),
        ([box.x for box in boxes], 0, 1),
        ([box.y for box in boxes], 0, 1),
    ):
        _assert_uniform(values, low, high)
    assert set(_draws(Box())) == {BoxParams(side=0.5, x=0.5, y=0.5)}


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_a_second_order_runs_with_its_probability(probability: float) -> None:
    second = Sometimes(probability=probability, operations=(Sinc(probability=1), Jpeg()))
    settings = DegradationSettings(operations=(Grey(), second, Downscale(), ResizeBack()))
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(settings, rng).operations for _ in range(_COUNT)]
    kinds = [" ".join(item.kind for item in one) for one in drawn]
    runs = kinds.count("grey sinc jpeg downscale resize_back")
    assert runs + kinds.count("grey downscale resize_back") == _COUNT
    assert stats.binomtest(runs, _COUNT, probability).pvalue > 1e-3


def test_operations_of_an_alternative_replace_it_in_the_chain() -> None:
    first = Chain(weight=3, operations=(Downscale(), Jpeg()))
    second = Chain(operations=(Jpeg(), Mask(), Downscale()))
    settings = DegradationSettings(
        operations=(Sinc(probability=1), Either(chains=(first, second)), ResizeBack())
    )
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(settings, rng) for _ in range(_COUNT)]
    paths = [" ".join(item.kind for item in one.operations) for one in drawn]
    _assert_frequencies(
        paths, {"sinc downscale jpeg resize_back": 3, "sinc jpeg mask downscale resize_back": 1}
    )
    assert DegradationParams.model_validate_json(drawn[0].model_dump_json()) == drawn[0]


def test_operations_are_drawn_independently() -> None:
    """The strengths of the operations of a chain are independent."""
    settings = DegradationSettings(
        operations=(
            Mask(fraction=(0, 1)),
            Resize(),
            Downscale(),
            Jpeg(quality=(1, 100)),
            ResizeBack(),
        )
    )
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(_COUNT):
        drawn: Any = draw_degradation(settings, rng)
        mask, resize, _, jpeg, _ = drawn.operations
        rows.append((drawn.scale, mask.fraction, resize.factor, jpeg.quality))
    correlations = np.abs(stats.spearmanr(rows).statistic - np.eye(4))
    assert correlations.max() < 0.06  # 3.8 standard errors


def test_the_real_esrgan_recipe_draws_the_published_chain() -> None:
    """The published chain: both orders, and the coin over the last step before the resize back."""
    recipe = dataset_recipe("realesrgan", {"sources": ["photos"], "output": "dataset"})
    rng = np.random.default_rng(0)
    drawn: list[Any] = [draw_degradation(recipe.degradation, rng) for _ in range(_COUNT)]
    assert {one.scale for one in drawn} == {4.0}
    first_blur, first_resize = zip(*(one.operations[:2] for one in drawn), strict=True)
    second_blur, second_resize = zip(*(one.operations[4:6] for one in drawn), strict=True)
    assert not any(isinstance(blur, SkippedOperation) for blur in first_blur)
    _assert_frequencies(
        [isinstance(blur, SkippedOperation) for blur in second_blur], {True: 0.2, False: 0.8}
    )
    _assert_uniform([b.sigma_x for b in first_blur if isinstance(b, BlurParams)], 0.2, 3)
    _assert_uniform([b.sigma_x for b in second_blur if isinstance(b, BlurParams)], 0.2, 1.5)
    assert {resize.relative_to for resize in first_resize} == {"hq"}
    assert {resize.relative_to for resize in second_resize} == {"lq"}
    _assert_uniform([r.factor for r in first_resize if r.factor < 1], 0.15, 1)
    _assert_uniform([r.factor for r in second_resize if r.factor > 1], 1, 1.2)
    sigmas = [one.operations[6] for one in drawn if one.operations[6].kind == "gaussian_noise"]
    _assert_uniform([noise.sigma for noise in sigmas], 1, 25)
    ends = [" ".join(item.kind for item in one.operations[7:]) for one in drawn]
    ends = [end.replace("skipped", "sinc") for end in ends]
    _assert_frequencies(
        ends, {"downscale sinc jpeg resize_back": 1, "jpeg downscale sinc resize_back": 1}
    )


def test_the_elir_recipe_draws_the_published_chain() -> None:
    recipe = dataset_recipe("elir-faces", {"sources": ["photos"], "output": "dataset"})
    rng = np.random.default_rng(0)
    drawn: list[Any] = [draw_degradation(recipe.degradation, rng) for _ in range(_COUNT)]
    _assert_uniform([one.scale for one in drawn], 0.8, 32)
    blurs, _, noises, jpegs, _ = zip(*(one.operations for one in drawn), strict=True)
    assert {(blur.size, blur.shape) for blur in blurs} == {(41, "iso")}
    _assert_uniform([blur.sigma_x for blur in blurs], 0.1, 15)
    assert {(noise.kind, noise.gray) for noise in noises} == {("gaussian_noise", False)}
    _assert_uniform([noise.sigma for noise in noises], 0, 20)
    _assert_frequencies([jpeg.quality for jpeg in jpegs], _equal(range(30, 101)))


def test_the_side_of_the_lq_is_uniform_as_in_elirs_code() -> None:
    """Sides of 16 to 613 pixels of a 512-pixel face, 315 on average; the paper's reading has 60."""
    given = {"sources": ["photos"], "output": "dataset"}
    sides = {}
    for name in ("elir-faces", "elir-faces-code"):
        rng, settings = np.random.default_rng(0), dataset_recipe(name, given).degradation
        drawn = [draw_degradation(settings, rng) for _ in range(_COUNT)]
        sides[name] = [small_size((512, 512), one.scale)[0] for one in drawn]
    code = sides["elir-faces-code"]
    assert (min(code), max(code)) == (16, 613)
    _assert_uniform(code, 15.5, 613.5)
    assert abs(np.mean(code) - 314.5) < 10 and abs(np.mean(sides["elir-faces"]) - 60) < 5
    assert abs(np.mean(np.array(code) < 64) - 0.08) < 0.015


def test_the_elir_bsr_recipe_runs_the_second_order_half_of_the_time() -> None:
    recipe = dataset_recipe("elir-bsr", {"sources": ["photos"], "output": "dataset"})
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(recipe.degradation, rng).operations for _ in range(_COUNT)]
    orders = [sum(isinstance(item, ResizeParams) for item in one) for one in drawn]
    _assert_frequencies(orders, {1: 0.5, 2: 0.5})
