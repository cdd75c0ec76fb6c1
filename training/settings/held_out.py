"""Metrics of held-out samples: their names in settings, and which of two values is better."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import AfterValidator, Field

from datagen.records import Settings

HELD_OUT = "val/"
"""Begins their names in MLflow."""
RAW = "_raw"
"""Ends their names where they are of the weights themselves, not of their average."""
_HIGHER_IS_BETTER = ("psnr", "ssim", "gain", "maniqa", "musiq", "clipiqa")
_LOWER_IS_BETTER = ("loss", "niqe", "lpips", "dists", "ids")
"""First words of what follows."""
_QUALITY = re.compile(r"val/(?!loss)(\w+?)(_x\d+|_source\d+)?_(nfe\d+|bicubic)(_raw)?")
_HEADLINE = re.compile(r"val/(psnr|gain)_nfe\d+")


def _checked(metric: str) -> str:
    known = _HIGHER_IS_BETTER + _LOWER_IS_BETTER
    word = re.split(r"[/_]", metric.removeprefix(HELD_OUT))[0]
    if metric.startswith(HELD_OUT) and word in known:
        return metric
    raise ValueError(
        f"{metric!r} is no held-out metric: give one such as val/psnr_x4_nfe1, val/gain_nfe1, "
        "val/loss/fm or, with validation.metrics=[niqe], val/niqe_nfe1"
    )


HeldOutMetric = Annotated[str, AfterValidator(_checked)]
"""The name of a metric of validation, as in MLflow."""


class EarlyStopping(Settings):
    """Ends a stage when a held-out metric has stopped improving."""

    metric: HeldOutMetric = Field(examples=["val/psnr_nfe1"])
    """The metric that is watched."""
    patience: int = Field(ge=1, examples=[5])
    """How many validations in a row may bring no new best."""


def needed_metric(metric: str) -> str | None:
    """What `validation.metrics` must name for this held-out metric; None for what is always
    measured."""
    found = _QUALITY.fullmatch(metric)
    name = found[1] if found else None
    return None if name in ("psnr", "ssim", "gain") else name


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a value of a held-out metric is better than another: higher quality or less loss;
    NaN is never better, and everything else is better than it."""
    if math.isnan(than):
        return not math.isnan(value)
    return value > than if higher_is_better(metric) else value < than


def higher_is_better(metric: str) -> bool:
    """With or without `val/`: PSNR, SSIM, gains and some of quality
    without a reference; of losses, distances and NIQE less is."""
    return metric.removeprefix(HELD_OUT).startswith(_HIGHER_IS_BETTER)


def is_headline(metric: str) -> bool:
    """Whether a held-out metric is one of the few that are shown where there is little room:
    errors, and PSNR and its gain over all samples."""
    return is_error(metric) or _HEADLINE.fullmatch(metric) is not None


def is_error(name: str) -> bool:
    """Whether a metric of training or validation is an error: not the total loss, which falls below
    zero and moves with its learned weighting."""
    return "loss/" in name and not name.endswith(("loss/total", "loss/weighting", RAW))
