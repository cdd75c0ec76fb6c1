"""What a full run shows on the page of its Prefect run: its evaluation, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.orchestration.run_page import show_end
from pipelines.recipes.full_recipe import FullRecipe
from pipelines.terminal.reports import evaluation_table
from pipelines.terminal.text import duration
from training.evaluation.main_metric import main_metric
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
        ("report", f"`{recipe.report}`"),
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
    metric = main_metric(name for row in here for name in row.values)
    if metric is None:
        return f"x{scale:g} not measured"
    by_method = {(row.method, row.steps): row.values.get(metric.name) for row in here}
    found = {key: value for key, value in by_method.items() if value is not None}
    ours = [(metric.rank(value), key) for key, value in found.items() if key[1]]
    if not ours or (BICUBIC, 0) not in found:
        return f"x{scale:g} not measured"
    best = max(ours)[1]
    steps = f"{best[1]} step{'s' if best[1] > 1 else ''}"
    return f"x{scale:g} {metric.told(found[best])} in {steps} (bicubic {found[BICUBIC, 0]:.2f})"
