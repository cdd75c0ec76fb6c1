"""Metrics of held-out samples are means over samples: of all, of a scale, of a dataset."""

from __future__ import annotations

import numpy as np

from training.validation.quality import BICUBIC, ORIGINAL, Measured, Quality, held_out_metrics


def _measured(number: int, source: int, psnr: list[float], scales: tuple[int, ...]) -> Measured:
    def quality(values: list[float]) -> Quality:
        rows = np.array(values)
        return Quality(psnr=rows, ssim=rows / 100, spectrum=np.ones((len(rows), 3)))

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
