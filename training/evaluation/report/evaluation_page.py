"""Models to a table and its page: the way of every evaluation that has a report."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.evaluate import evaluate
from training.evaluation.photo_list import list_photos
from training.evaluation.report.examples import Examples
from training.evaluation.report.page import report_page
from training.run_dir.records import Evaluation
from training.settings.benchmark import BenchmarkModel
from training.settings.evaluation import EvaluationSettings


def evaluate_with_page(
    models: str | Sequence[BenchmarkModel],
    settings: EvaluationSettings,
    *,
    lq_folder: str | None = None,
) -> tuple[Evaluation, bytes]:
    """What `evaluate` finds, and its `report.html`.

    Raises:
        FlowmapsrError: as `evaluate`.
    """
    given = list_photos(settings)
    examples = Examples(len(given.scales))
    found = evaluate(models, settings, given=given, lq_folder=lq_folder, on_scale=examples.add)
    title = f"{', '.join(found.models)}: evaluation"
    return found, report_page(title, settings, found, examples.found)
