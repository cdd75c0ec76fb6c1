"""PSNR, SSIM and NIQE in the conventions of the field, which their names say."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from training.evaluation.metrics.fidelity import WINDOW, psnr, ssim
from training.evaluation.metrics.luma import luma
from training.evaluation.metrics.metric import NotMeasurable, PictureMetric
from training.evaluation.metrics.niqe import niqe
from training.settings.evaluation import Convention


def niqe_metric(how: Convention) -> PictureMetric:
    """Of luma."""
    name = "niqe" if how.luma == "ycbcr" else "niqe_yiq"
    return PictureMetric(
        name + _suffix(how),
        "lower",
        lambda result: niqe(luma(result, how.luma)),
        needs_original=False,
        border=how.border,
    )


def _suffix(how: Convention) -> str:
    """The cut border in a name."""
    return f"_crop{how.border}" if how.border else ""


def _channel(how: Convention, *, y: bool) -> str:
    return {"ycbcr": "y", "yiq": "yiq"}[how.luma] if y else "rgb"


def psnr_metric(how: Convention, *, y: bool) -> PictureMetric:
    """On luma where `y`, else on RGB."""

    def measure(result: np.ndarray, original: np.ndarray) -> float:
        return float(psnr(*(_tensor(one, how, y=y) for one in (original, result))))

    name = f"psnr_{_channel(how, y=y)}{_suffix(how)}"
    return PictureMetric(name, "higher", measure, border=how.border)


def ssim_metric(how: Convention, *, y: bool) -> PictureMetric:
    """On luma where `y`, else on RGB."""
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
