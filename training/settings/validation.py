"""What validation measures beside losses, PSNR and SSIM, and how often."""

from __future__ import annotations

from pydantic import Field, field_validator

from datagen.records import Location, Settings
from training.settings.evaluation import MetricName


class ValidationSettings(Settings):
    """Metrics of `flowmapsr evaluate` on the held-out samples of a training."""

    metrics: tuple[MetricName, ...] = ()
    """Measured on restored samples and on bicubic interpolation, as val/niqe_nfe1 and
    val/niqe_bicubic. Those of sets of photos (FID, KID) are left to `flowmapsr evaluate`."""
    every: int = Field(1, ge=1)
    """They are measured in every so many validations, at the start and at the last step of a stage:
    one with a network may take longer than all else. `keep_best` and `early_stopping` by one of
    them look at those validations."""
    metric_weights: Location | None = None
    """Folder of the networks that they need, as safetensors, which every worker must see; null
    takes the downloads."""

    @field_validator("metrics")
    @classmethod
    def _of_samples(cls, metrics: tuple[MetricName, ...]) -> tuple[MetricName, ...]:
        for name in metrics:
            if name.startswith(("fid", "kid")):
                raise ValueError(
                    f"{name} compares sets of photos, and larger ones than validation has: measure "
                    "it with flowmapsr evaluate"
                )
            if name in ("psnr_rgb", "ssim_rgb"):
                raise ValueError(f"{name} is always measured, as val/{name[:4]}_nfe1: leave it out")
        return tuple(dict.fromkeys(metrics))
