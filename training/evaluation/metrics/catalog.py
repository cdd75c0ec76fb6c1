"""The metrics of an evaluation by their names, and a line on each that cannot be measured here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from training.evaluation.metrics.fidelity import WINDOW, psnr, ssim
from training.evaluation.metrics.luma import luma
from training.evaluation.metrics.metric import Metric, Metrics, NotMeasurable, PictureMetric
from training.evaluation.metrics.niqe import niqe
from training.settings.evaluation import Convention, MetricName


class Unavailable(Exception):
    """Why a metric cannot be measured here, and how to change that."""


def find_metrics(names: Sequence[MetricName], convention: Convention) -> Metrics:
    """PSNR and SSIM on RGB, then the named metrics, each with its convention in its name."""
    found: dict[str, Metric] = {}
    left_out = []
    always: tuple[MetricName, ...] = ("psnr_rgb", "ssim_rgb")
    plain = [(name, Convention()) for name in always]
    for name, how in [*plain, *((name, convention) for name in names)]:
        try:
            metric = _metric(name, how)
        except Unavailable as error:
            left_out.append(f"{name}: {error}")
        else:
            found.setdefault(metric.name, metric)
    pictures = tuple(one for one in found.values() if isinstance(one, PictureMetric))
    return Metrics(pictures, left_out=tuple(left_out))


def _metric(name: MetricName, how: Convention) -> Metric:
    """
    Raises:
        Unavailable: what it needs is missing or wrong.
    """
    match name:
        case "psnr_rgb" | "psnr_y":
            return _psnr(how, y=name == "psnr_y")
        case "ssim_rgb" | "ssim_y":
            return _ssim(how, y=name == "ssim_y")
        case "niqe":
            measured = "niqe" if how.luma == "ycbcr" else "niqe_yiq"
            return PictureMetric(
                measured + _suffix(how),
                "lower",
                lambda result: niqe(luma(result, how.luma)),
                needs_original=False,
                border=how.border,
            )
        case _:
            raise Unavailable("not measured by this version")


def _suffix(how: Convention) -> str:
    """The cut border in a name."""
    return f"_crop{how.border}" if how.border else ""


def _channel(how: Convention, *, y: bool) -> str:
    return {"ycbcr": "y", "yiq": "yiq"}[how.luma] if y else "rgb"


def _psnr(how: Convention, *, y: bool) -> PictureMetric:
    def measure(result: np.ndarray, original: np.ndarray) -> float:
        return float(psnr(*(_tensor(one, how, y=y) for one in (original, result))))

    name = f"psnr_{_channel(how, y=y)}{_suffix(how)}"
    return PictureMetric(name, "higher", measure, border=how.border)


def _ssim(how: Convention, *, y: bool) -> PictureMetric:
    compare = partial(ssim, least_contrast=0.0) if how.pyiqa_ssim else ssim

    def measure(result: np.ndarray, original: np.ndarray) -> float:
        if min(result.shape[:2]) < WINDOW:
            height, width = result.shape[:2]
            raise NotMeasurable(f"{width}x{height} is smaller than its window of {WINDOW} pixels")
        tensors = [_tensor(one, how, y=y) for one in (original, result)]
        if how.pyiqa_ssim:
            tensors = [one.round() for one in tensors]
        return float(compare(*tensors))

    kind = "_pyiqa" if how.pyiqa_ssim else ""
    name = f"ssim_{_channel(how, y=y)}{kind}{_suffix(how)}"
    return PictureMetric(name, "higher", measure, border=how.border)


def _tensor(picture: np.ndarray, how: Convention, *, y: bool) -> Tensor:
    """RGB uint8 (H, W, 3) -> (1, 1 or 3, H, W), in levels of 8 bits."""
    if y:
        return torch.from_numpy(luma(picture, how.luma))[None, None]
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
