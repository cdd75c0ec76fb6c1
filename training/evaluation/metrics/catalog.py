"""The metrics of an evaluation by their names, and a line on each that cannot be measured here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from training.evaluation.metrics.classic import niqe_metric, psnr_metric, ssim_metric
from training.evaluation.metrics.distributions import frechet_distance, kernel_distance
from training.evaluation.metrics.iqa import iqa_metric
from training.evaluation.metrics.metric import (
    Metric,
    Metrics,
    PictureMetric,
    SetMetric,
    Unavailable,
)
from training.evaluation.metrics.networks import Features, Networks
from training.evaluation.metrics.weights import MetricWeights
from training.settings.evaluation import Convention, EvaluationSettings, MetricName

ALONE: frozenset[MetricName] = frozenset(
    ("niqe", "maniqa_koniq", "maniqa_pipal", "musiq_koniq", "clipiqa")
)
"""Metrics of a picture that need no original."""


def find_metrics(
    names: Sequence[MetricName],
    convention: Convention,
    *,
    weights: str | None = None,
    originals: bool = True,
) -> Metrics:
    """PSNR and SSIM on RGB, then the named metrics, each with its convention in its name.

    Args:
        weights: a folder of the networks; None takes the published downloads.
        originals: whether there are any; without them NIQE comes first, and metrics that compare
            are left out.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = Networks(MetricWeights(weights), device)
    always: tuple[MetricName, ...] = ("psnr_rgb", "ssim_rgb")
    wanted = [*((one, Convention()) for one in always), *((one, convention) for one in names)]
    left_out = []
    if not originals:
        wanted = [(one, convention) for one in ("niqe", *names) if one in ALONE]
        compared = [one for one in names if one not in ALONE]
        if compared:
            left_out.append(f"{', '.join(compared)}: there are no originals to compare with")
    found: dict[str, Metric] = {}
    for name, how in wanted:
        try:
            found |= {one.name: one for one in _metrics(name, how, networks)}
        except Unavailable as error:
            left_out.append(f"{name}: {error}")
    return Metrics(
        tuple(one for one in found.values() if isinstance(one, PictureMetric)),
        tuple(one for one in found.values() if isinstance(one, SetMetric)),
        tuple(left_out),
    )


def metrics_of(settings: EvaluationSettings) -> Metrics:
    """What an evaluation measures."""
    return find_metrics(
        settings.metrics,
        settings.conventions(),
        weights=settings.metric_weights,
        originals=settings.has_originals,
    )


def _metrics(name: MetricName, how: Convention, networks: Networks) -> Iterator[Metric]:
    """
    Raises:
        Unavailable: what it needs is missing or wrong.
    """
    match name:
        case "psnr_rgb" | "psnr_y":
            yield psnr_metric(how, y=name == "psnr_y")
        case "ssim_rgb" | "ssim_y":
            yield ssim_metric(how, y=name == "ssim_y")
        case "niqe":
            yield niqe_metric(how)
        case "lpips_alex":
            yield PictureMetric(name, "lower", networks.lpips("alex"))
        case "lpips_vgg":
            yield PictureMetric(name, "lower", networks.lpips("vgg"))
        case "dists":
            yield PictureMetric(name, "lower", networks.dists())
        case "ids_degrees":
            yield PictureMetric(name, "lower", networks.identity_angle())
        case "fid_whole" | "fid_patches":
            of, features = _features(name, networks)
            yield SetMetric(name, "lower", of, features, frechet_distance)
            # For sets that are too small for FID, and those whose FID says little.
            yield SetMetric(name.replace("fid", "kid"), "lower", of, features, kernel_distance)
        case "kid_whole" | "kid_patches":
            yield SetMetric(name, "lower", *_features(name, networks), kernel_distance)
        case "maniqa_koniq" | "maniqa_pipal" | "musiq_koniq" | "clipiqa":
            yield iqa_metric(name, networks.device)


def _features(name: str, networks: Networks) -> tuple[str, Features]:
    """What a metric of sets is of, by its name, and the function of a picture."""
    of = name.partition("_")[2]
    return of, networks.whole_features if of == "whole" else networks.patch_features
