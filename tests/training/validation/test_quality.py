"""Metrics of held-out samples are means over samples: of all, of a scale, of a dataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.evaluation.metrics.catalog import find_metrics
from training.settings.evaluation import Convention
from training.validation.measures import Measures
from training.validation.quality import BICUBIC, ORIGINAL, Measured, Quality, held_out_metrics


def _measured(
    number: int, source: int, psnr: list[float], scales: tuple[int, ...], *, niqe: bool = True
) -> Measured:
    def quality(values: list[float]) -> Quality:
        rows = np.array(values)
        of_each = {"niqe": rows / 10 if niqe else np.full(len(rows), np.nan)}
        spectrum = np.ones((len(rows), 3))
        return Quality(psnr=rows, ssim=rows / 100, spectrum=spectrum, values=of_each)

    methods = {BICUBIC: quality([20.0] * len(psnr)), ORIGINAL: quality([100.0] * len(psnr))}
    return Measured(
        number=number,
        source=source,
        scales=scales,
        terms={"loss/fm": (sum(psnr), len(psnr))},
        over_time={},
        quality={**methods, "nfe1": quality(psnr)},
    )


def test_each_dataset_of_a_mixture_has_its_own_quality() -> None:
    pairs = _measured(0, 0, [22.0, 24.0], (4, 4))
    others = [_measured(1, 1, [30.0, 31.0], (2, 4)), _measured(2, 1, [35.0], (2,))]
    found = held_out_metrics([pairs, *others])
    assert found["val/psnr_nfe1"] == np.mean([22, 24, 30, 31, 35])
    assert found["val/psnr_source0_nfe1"] == 23 and found["val/psnr_source1_nfe1"] == 32
    assert found["val/gain_source0_nfe1"] == 3 and found["val/psnr_source1_bicubic"] == 20
    assert found["val/psnr_x4_nfe1"] == np.mean([22, 24, 31])
    assert found["val/loss/fm"] == found["val/psnr_nfe1"]
    alone = held_out_metrics(others)
    assert alone["val/psnr_nfe1"] == 32 and not any("source" in name for name in alone)


def test_a_metric_is_of_the_samples_that_are_large_enough_for_it() -> None:
    large, small = _measured(0, 0, [40.0, 50.0], (2, 4)), _measured(1, 0, [30.0], (1,), niqe=False)
    found = held_out_metrics([large, small])
    assert found["val/niqe_nfe1"] == 4.5 and found["val/niqe_bicubic"] == 2.0
    assert found["val/niqe_x2_nfe1"] == 4 and found["val/niqe_x4_nfe1"] == 5
    assert not any("niqe_x1" in name for name in found)
    assert not any("niqe" in name for name in held_out_metrics([small]))


def test_each_image_of_a_group_is_measured_as_by_evaluation() -> None:
    rng = np.random.default_rng(0)
    images, originals = (
        rng.integers(0, 256, (2, 3, 40, 24), dtype=np.uint8) for _ in ("images", "originals")
    )
    metrics = find_metrics(("psnr_y", "niqe"), Convention()).of_pictures
    measures = Measures(metrics)
    found = Quality.of(torch.from_numpy(images), torch.from_numpy(originals), measures)
    luma = np.array([65.481, 128.553, 24.966]) / 255
    errors = ((images - originals.astype(float)).transpose(0, 2, 3, 1) @ luma) ** 2
    closed = 10 * np.log10(255**2 / errors.mean(axis=(1, 2)))
    np.testing.assert_allclose(found.values["psnr_y"], closed, atol=0.02)  # levels are rounded
    assert found.values["psnr_rgb"].tolist() == pytest.approx(found.psnr.tolist(), abs=1e-12)
    assert np.isnan(found.values["niqe"]).all()
    assert "24x40" in measures.missed["niqe"] and measures.seconds > 0
