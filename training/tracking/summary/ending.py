"""What a finished training says at its end, under every launcher; read from its folder."""

from __future__ import annotations

import re
from pathlib import Path

from training.run_dir.paths import RunPaths
from training.settings.recipe import TrainingRecipe
from training.tracking.store.run_names import where_tracked
from training.tracking.summary.status import StageStatus, run_status

QUALITY = re.compile(r"val/psnr_nfe\d+")


def ending_lines(run: Path, recipe: TrainingRecipe | None = None) -> list[str]:
    """How each stage ended, and where the metrics and the logs are; `recipe` as `run_status`."""
    paths = RunPaths(run)
    tracked = where_tracked(run) or "not in MLflow yet"
    return [
        *(f"  {stage.stage}: {_how_it_ended(stage)}" for stage in run_status(run, recipe).stages),
        f"  metrics  {tracked}; table of the stages: {paths.stage_table_text}",
        f"  logs     {paths.logs}",
    ]


def _how_it_ended(stage: StageStatus) -> str:
    parts = [stage.ended or f"{stage.step} steps"]
    if stage.headline is not None and stage.headline_value is not None:
        parts.append(f"{stage.headline} {stage.headline_value:.4g}")
    if stage.restarts:
        parts.append(f"{stage.restarts} restart{'s' * (stage.restarts > 1)}")
    measured = sorted(name for name in stage.validation if QUALITY.fullmatch(name))
    if measured:
        steps = measured[0].removeprefix("val/psnr_nfe")
        psnr, gain = (stage.validation[f"val/{name}_nfe{steps}"] for name in ("psnr", "gain"))
        words = "one step" if steps == "1" else f"{steps} steps"
        parts.append(f"held out, {words} {psnr:.2f} dB, {gain:+.2f} over bicubic")
    return "; ".join(parts)
