"""What a full run shows on the page of its Prefect run: its evaluation, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.orchestration.run_page import show_end
from pipelines.recipes.full_recipe import FullRecipe
from pipelines.terminal.reports import evaluation_table
from pipelines.terminal.text import duration
from training.run_dir.records import BICUBIC, EvaluationRow
from training.tracking.summary.stage_table import Table


def show_full(
    recipe: FullRecipe,
    rows: Sequence[EvaluationRow],
    seconds: Mapping[str, float],
    comparison: str,
) -> None:
    """Shows the `rows` of the evaluation, the time of each part, and the picture."""
    message = ", ".join(_best(rows, scale) for scale in dict.fromkeys(row.scale for row in rows))
    *table, convention = evaluation_table(rows)
    facts = (
        ("dataset", f"`{recipe.dataset.output}`"),
        ("training", f"`{recipe.training.output}`"),
        ("held-out photos", f"`{recipe.evaluation.place}`"),
        *((f"time of {part}", duration(value)) for part, value in seconds.items()),
    )
    summary = [
        "```",
        *table,
        "```",
        convention,
        "",
        Table(("this run", message), facts).to_markdown(),
    ]
    show_end(recipe.output, message, "\n".join(summary), [comparison])


def _best(rows: Sequence[EvaluationRow], scale: float) -> str:
    """`x4 27.10 dB in 1 step (bicubic 25.30)`."""
    here = [row for row in rows if row.scale == scale]
    best = max((row for row in here if row.steps), key=lambda row: row.psnr)
    base = next(row.psnr for row in here if row.method == BICUBIC)
    steps = f"{best.steps} step{'s' if best.steps > 1 else ''}"
    return f"x{scale:g} {best.psnr:.2f} dB in {steps} (bicubic {base:.2f})"
