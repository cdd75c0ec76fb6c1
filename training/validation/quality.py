"""Turns what was measured on groups of held-out samples into the metrics of a validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from training.evaluation.metrics.fidelity import psnr, ssim
from training.trainer import StepTerms
from training.validation.measures import NO_MEASURES, Measures, Values
from training.validation.spectrum import power_spectrum

BICUBIC, ORIGINAL = "bicubic", "original"
MOST_DB = 100.0
"""PSNR of an image without any error, which would be infinite."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Quality:
    """Of the images of a group, a row for each sample."""

    psnr: np.ndarray
    ssim: np.ndarray
    spectrum: np.ndarray
    values: Values = field(default_factory=dict)
    """Of the metrics that the recipe adds."""

    @classmethod
    def of(cls, images: Tensor, originals: Tensor, measures: Measures = NO_MEASURES) -> Quality:
        return cls(
            psnr=_array(psnr(originals, images).clamp(max=MOST_DB)),
            ssim=_array(ssim(originals, images)),
            spectrum=_array(power_spectrum(images)),
            values=measures.of(images, originals),
        )


@dataclass(frozen=True)
class Measured:
    """The values of a group."""

    number: int
    source: int
    """The index of its dataset."""
    scales: tuple[int, ...]
    terms: StepTerms
    over_time: dict[str, Points]
    quality: dict[str, Quality]
    """By method."""


def held_out_metrics(found: Sequence[Measured]) -> dict[str, float]:
    """`val/loss/...`, and PSNR, SSIM and gain over bicubic of all samples, of each group of
    scale and of each dataset of a mixture: `val/psnr_nfe1`, `val/psnr_x4_nfe1`,
    `val/gain_source0_nfe1`. Of further metrics the same, over the samples that have one."""
    if not found:
        return {}
    metrics = {}
    for name in found[0].terms:
        total, count = (
            sum(parts) for parts in zip(*(one.terms[name] for one in found), strict=True)
        )
        if count:
            metrics[f"val/{name}"] = total / count
    scales = np.array([scale for one in found for scale in one.scales])
    rows = {"": np.ones(len(scales), bool)}
    rows |= {f"_x{scale}": scales == scale for scale in sorted(set(scales.tolist()))}
    sources = np.array([one.source for one in found for _ in one.scales])
    if len(held_out := sorted(set(sources.tolist()))) > 1:
        rows |= {f"_source{source}": sources == source for source in held_out}
    base = np.concatenate([one.quality[BICUBIC].psnr for one in found])
    for method in (name for name in found[0].quality if name != ORIGINAL):
        qualities = [one.quality[method] for one in found]
        values = {
            "psnr": np.concatenate([one.psnr for one in qualities]),
            "ssim": np.concatenate([one.ssim for one in qualities]),
        }
        if method != BICUBIC:
            values["gain"] = values["psnr"] - base
        metrics |= {
            f"val/{measure}{group}_{method}": float(each[chosen].mean())
            for measure, each in values.items()
            for group, chosen in rows.items()
        }
        for measure in qualities[0].values:
            of_bicubic, each = (
                np.concatenate([one.quality[name].values[measure] for one in found])
                for name in (BICUBIC, method)
            )
            measured = ~np.isnan(of_bicubic)  # the others are too small for it
            metrics |= {
                f"val/{measure}{group}_{method}": float(each[chosen & measured].mean())
                for group, chosen in rows.items()
                if (chosen & measured).any()
            }
    return metrics


def joined(parts: Iterable[Mapping[str, Points]]) -> dict[str, Points]:
    """The points of all parts, by name."""
    joined: dict[str, Points] = {}
    for part in parts:
        for name, points in part.items():
            joined[name] = [*joined.get(name, ()), *points]
    return joined


def mean_spectra(found: Sequence[Measured]) -> dict[str, np.ndarray]:
    """Over all samples, by method."""
    methods = found[0].quality if found else ()
    return {
        method: np.concatenate([one.quality[method].spectrum for one in found]).mean(axis=0)
        for method in methods
    }


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.cpu().numpy()
    return array
