"""FID of Gaussians against its closed form, KID against a direct double sum."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.metrics.distributions import frechet_distance, kernel_distance
from training.evaluation.metrics.metric import NotMeasurable


def _sample(count: int, mean: np.ndarray, root: np.ndarray, seed: int) -> np.ndarray:
    """Features whose mean and covariance are exactly those: `root @ root.T`."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    drawn -= drawn.mean(axis=0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False))).T
    return mean + white @ root.T


@pytest.mark.parametrize("counts", [(60, 200), (200, 60), (75, 75)])
def test_fid_of_gaussians_that_share_their_axes(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    spreads = rng.uniform(0.5, 3, (2, 8))
    means = rng.normal(size=(2, 8))
    x, y = (
        _sample(count, mean, axes * spread, seed)
        for count, mean, spread, seed in zip(counts, means, spreads, (1, 2), strict=True)
    )
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((spreads[0] - spreads[1]) ** 2)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_fid_of_fewer_pictures_than_features_is_that_of_the_covariances() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 100)), rng.normal(0.3, 2, size=(55, 100))
    a, b = (np.cov(each, rowvar=False) for each in (x, y))
    # Eigenvalues of the product by way of the root of one of them.
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()
    gap = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    expected = gap + np.trace(a) + np.trace(b) - 2 * trace
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_kid_is_the_double_sum() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(7, 5)), rng.normal(0.5, 1, size=(4, 5))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(a * b) / 5 + 1) ** 3)

    within = sum(
        sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        for a, n in ((x, 7), (y, 4))
    )
    between = sum(kernel(a, b) for a in x for b in y) / (7 * 4)
    assert kernel_distance(x, y) == pytest.approx(within - 2 * between, rel=1e-12)


def test_kid_of_two_halves_of_one_set_is_about_nothing() -> None:
    drawn = np.random.default_rng(3).normal(size=(2000, 16))
    near = kernel_distance(drawn[:1000], drawn[1000:])
    assert abs(near) < 0.01 < kernel_distance(drawn[:1000], drawn[1000:] + 0.5)


def test_too_few_pictures_are_told() -> None:
    few = np.zeros((49, 3))
    with pytest.raises(NotMeasurable, match="49 pictures or patches are too few.*KID"):
        frechet_distance(few, np.zeros((500, 3)))
    with pytest.raises(NotMeasurable, match="1 picture is too few"):
        kernel_distance(few[:1], few)
