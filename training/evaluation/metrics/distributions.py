"""How far two sets of features are apart: FID and KID."""

from __future__ import annotations

import numpy as np

from training.evaluation.metrics.metric import NotMeasurable

LEAST_FOR_FID, LEAST_FOR_KID = 50, 2


def frechet_distance(results: np.ndarray, originals: np.ndarray) -> float:
    """FID (Heusel et al. 2017) of (N, D) and (M, D): of Gaussians with their means and covariances.

    The trace of the root of the product of two covariances is the sum of the singular values of
    one set's centered features times the other's: exact where there are fewer pictures than
    features too, but then biased by their number.

    Raises:
        NotMeasurable: they are too few.
    """
    least = min(len(results), len(originals))
    if least < LEAST_FOR_FID:
        raise NotMeasurable(
            f"{least} pictures or patches are too few, at least {LEAST_FOR_FID} are needed; KID is "
            "measured instead"
        )
    means = [features.mean(axis=0, dtype=np.float64) for features in (results, originals)]
    x, y = (_root(each - mean) for each, mean in zip((results, originals), means, strict=True))
    together = np.linalg.norm(x @ y.T, ord="nuc")
    distance = np.sum((means[0] - means[1]) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * together
    return float(max(distance, 0.0))  # rounding may leave it just below


def _root(centered: np.ndarray) -> np.ndarray:
    """(N, D) -> (at most D, D), whose product with itself is the covariance."""
    scaled = centered / np.sqrt(len(centered) - 1)
    root: np.ndarray = scaled
    if len(scaled) > scaled.shape[1]:
        root = np.asarray(np.linalg.qr(scaled, mode="r"))
    return root


def kernel_distance(results: np.ndarray, originals: np.ndarray) -> float:
    """KID (Binkowski et al. 2018) of (N, D) and (M, D): the squared maximum mean discrepancy under
    the kernel (x y / D + 1)^3, unbiased for any number of pictures; all pairs, no random subsets.

    Raises:
        NotMeasurable: there is but one picture.
    """
    least = min(len(results), len(originals))
    if least < LEAST_FOR_KID:
        raise NotMeasurable(f"{least} picture is too few; at least {LEAST_FOR_KID} are needed")
    x, y = results.astype(np.float64), originals.astype(np.float64)
    return float(_mean_of_others(x) + _mean_of_others(y) - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    values: np.ndarray = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def _mean_of_others(x: np.ndarray) -> float:
    """Of the kernel over pairs of two different rows."""
    values = _kernel(x, x)
    return float((values.sum() - np.trace(values)) / (len(x) * (len(x) - 1)))
