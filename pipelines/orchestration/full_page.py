"""What a full run shows on the page of its Prefect run: its evaluation, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import artifacts

from datagen.io import storage
from pipelines.orchestration.artifacts import add_picture, tell
from pipelines.orchestration.guard import artifact_slug
from pipelines.recipes.full_recipe import FullRecipe
from pipelines.terminal.text import duration
from training.run_dir.records import BICUBIC, EvaluationRow


def show_full(
    recipe: FullRecipe,
    rows: Sequence[EvaluationRow],
    seconds: Mapping[str, float],
    comparison: Path,
) -> None:
    """Shows the `rows` of the evaluation, the time of each part, and the picture."""
    message = full_message(rows)

    def add() -> None:
        name = artifact_slug(recipe.output)
        text = full_summary(recipe, rows, seconds)
        artifacts.create_markdown_artifact(text, key=f"{name}-summary", description=message)
        data = storage.read_bytes(str(comparison))
        add_picture(data, key=f"{name}-comparison", description=f"`{comparison}`")

    tell(message, add)


def full_message(rows: Sequence[EvaluationRow]) -> str:
    """`x4 27.10 dB in 1 step, bicubic 25.30`: the best of each scale."""
    return "; ".join(_best(rows, scale) for scale in dict.fromkeys(row.scale for row in rows))


def _best(rows: Sequence[EvaluationRow], scale: float) -> str:
    here = [row for row in rows if row.scale == scale]
    best = max((row for row in here if row.method != BICUBIC), key=lambda row: row.psnr)
    text = f"x{scale:g} {best.psnr:.2f} dB in {best.steps} step{'s' if best.steps > 1 else ''}"
    return ", ".join([text, *(f"bicubic {row.psnr:.2f}" for row in here if row.method == BICUBIC)])


def full_summary(
    recipe: FullRecipe, rows: Sequence[EvaluationRow], seconds: Mapping[str, float]
) -> str:
    """A full run on half a page."""
    times = ", ".join(f"{part} {duration(value)}" for part, value in seconds.items())
    lines = [
        f"# {recipe.output}",
        "",
        "| method | scale | steps | PSNR dB | SSIM | seconds a photo |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {row.method} | x{row.scale:g} | {row.steps or '-'} | {row.psnr:.2f} | "
            f"{row.ssim:.4f} | {row.seconds:.2f} |"
            for row in rows
        ),
        "",
        f"- this run: {times}",
        f"- dataset `{recipe.dataset.output}`",
        f"- training `{recipe.training.output}`",
        f"- held-out photos `{recipe.evaluation.photos}`",
    ]
    return "\n".join(lines)
