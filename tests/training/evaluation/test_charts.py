"""Which rows of a report are joined to a curve."""

from __future__ import annotations

from training.evaluation.report.charts import AXES, curves, metric_chart, trade_chart
from training.evaluation.report.tables import Cell, MethodRow
from training.evaluation.statistics import Interval
from training.run_dir.records import PSNR


def _row(model: str, steps: int, lora: float | None, psnr: float = 20.0) -> MethodRow:
    cells = tuple(
        Cell(name, Interval(value, value - 1, value + 1, 5), None, "")
        for name, value in {PSNR: psnr, "niqe": psnr / 4}.items()
    )
    return MethodRow(
        method=model if lora is None else f"{model} LoRA {lora:g}",
        model=model,
        steps=steps,
        lora_scale=lora,
        guidance=None,
        seconds=1.0,
        parameters=None,
        gflop=None,
        cells=cells,
    )


def test_a_curve_joins_what_differs_in_one_thing_only() -> None:
    steps, lora, guidance = AXES
    bicubic = _row("bicubic", 0, None)
    a = [_row("a", n, scale) for scale in (2.0, 1.0) for n in (1, 4)]
    rows = [bicubic, *a, _row("b", 1, 1.0)]
    over_steps = {name: [place for place, _ in own] for name, own in curves(rows, steps).items()}
    assert over_steps == {"a, LoRA 2": [1, 4], "a, LoRA 1": [1, 4]}
    over_lora = {name: [place for place, _ in own] for name, own in curves(rows, lora).items()}
    assert over_lora == {"a, 1 steps": [1.0, 2.0], "a, 4 steps": [1.0, 2.0]}
    assert curves(rows, guidance) == {} and metric_chart(rows, "niqe", "lower", guidance) is None


def test_what_does_not_vary_is_not_in_a_curves_name() -> None:
    rows = [_row("a", 2, scale) for scale in (1.0, 3.0)]
    assert list(curves(rows, AXES[1])) == ["a"]
    chart = trade_chart([_row("bicubic", 0, None), *rows], "niqe", {"niqe": "lower"})
    assert chart is not None and "numbers: LoRA scale" in chart and ">bicubic<" in chart
    assert trade_chart(rows[:1], "niqe", {}) is None
