"""The page of an evaluation, made of a real one and opened in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pipelines.terminal.reports import evaluation_table
from tests.support.browser import browser, text_with
from tests.support.eventually import eventually
from tests.support.models import saved_model
from training.evaluation.evaluate import evaluate
from training.evaluation.report.evaluation_page import evaluate_with_page
from training.evaluation.report.examples import Examples, chosen
from training.evaluation.report.page import report_page
from training.evaluation.report.tables import table
from training.evaluation.results import write_results
from training.run_dir.records import EvaluationRow, PictureRow
from training.settings.evaluation import EvaluationSettings
from training.settings.model import ModelSettings
from training.tracking.evaluation_log import evaluation_metrics

OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
SHOWN = "[...document.querySelectorAll('.compare img')].filter(i => i.naturalWidth > 0).length"
CUT = "document.querySelector('.compare').style.getPropertyValue('--cut')"


def rows_of(method: str, steps: int, values: list[float]) -> list[PictureRow]:
    return [
        PictureRow(
            photo=f"{i}.png", method=method, scale=4, steps=steps,
            values={"psnr_rgb": value, "niqe": 10 - value},
        )
        for i, value in enumerate(values)
    ]  # fmt: skip


def test_a_difference_is_named_only_where_it_is_more_than_chance() -> None:
    base = [20.0, 25, 30, 22, 27, 31, 24, 26]
    noise = np.resize([1.0, -1.0], 8)
    pictures = [
        *rows_of("bicubic", 0, base),
        *rows_of("ours", 1, [one + 0.3 for one in base]),
        *rows_of("ours", 2, list(base + noise)),
    ]
    rows = [
        EvaluationRow(
            method=name, scale=4, steps=steps, psnr=0, ssim=0, seconds=1,
            values={"psnr_rgb": 0.0, "niqe": 0.0, "fid_whole": 50.0},
        )
        for name, steps in (("bicubic", 0), ("ours", 1), ("ours", 2))
    ]  # fmt: skip
    better = {"psnr_rgb": "higher", "niqe": "lower", "fid_whole": "lower"}
    found = table(rows, pictures, 4, better)  # type: ignore[arg-type]
    verdicts = {row.label: [cell.verdict for cell in row.cells] for row in found}
    assert verdicts == {
        "bicubic": ["", "", ""],
        "ours, 1 step": ["better", "better", ""],
        "ours, 2 steps": ["may be chance", "may be chance", ""],
    }
    difference = found[1].cells[0].difference
    assert difference is not None and difference.mean == pytest.approx(0.3)
    assert found[1].cells[2].value.mean == 50
    assert chosen(pictures, count=2) == [
        ("restored worst: 20.30 dB", "0.png"),
        ("restored worst: 22.30 dB", "3.png"),
        ("+0.30 dB over bicubic", "1.png"),
        ("+0.30 dB over bicubic", "2.png"),
    ]


def test_a_report_opens_offline_on_a_desk_and_on_a_phone(
    tmp_path: Path, tiny_model: ModelSettings
) -> None:
    photos = tmp_path / "<photos>"
    photos.mkdir()
    for i in range(6):
        crop = data.astronaut()[64 * i : 64 * i + 96, 100:228]
        Image.fromarray(crop).save(photos / f"{i}.png")
    model = saved_model(tmp_path / "model", tiny_model, trained=True)
    settings = EvaluationSettings(photos=str(photos), scales=(2.0,), steps=(1, 2))
    found, page = evaluate_with_page(str(model), settings)
    again = Examples(scales=1)
    evaluate(str(model), settings, on_scale=again.add)
    assert page == report_page("flowmapsr: evaluation", settings, found, again.found)

    text = page.decode()
    assert "<photos>" not in text and "&lt;photos&gt;" in text
    fetched = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']+|@import|url\((?!#)""", text)
    assert fetched == []
    (tmp_path / "report.html").write_bytes(page)
    with browser(width=1200, height=900) as chromium:
        chromium.goto(f"file://{tmp_path}/report.html")
        shown = text_with(chromium, "x2: flowmapsr", "95 % interval", "restored worst", "psnr_rgb")
        assert "not measured" not in shown
        eventually(lambda: chromium.evaluate(SHOWN) == 2 * len(again.found) == 12)
        assert chromium.locator(".charts svg").count() == 2
        slider = chromium.locator(".compare").first
        frame = slider.bounding_box()
        assert frame is not None
        slider.hover(position={"x": frame["width"] / 4, "y": 5})
        assert chromium.evaluate(CUT) == "25%"
        assert chromium.evaluate(OVERFLOW) <= 0
        chromium.set_viewport_size({"width": 390, "height": 800})
        assert chromium.evaluate(OVERFLOW) <= 0
        chromium.screenshot(path=tmp_path / "phone.png")


def test_without_originals_niqe_judges_and_nothing_is_compared(
    tmp_path: Path, tiny_model: ModelSettings
) -> None:
    photos = tmp_path / "real"
    photos.mkdir()
    for i in range(6):
        crop = data.astronaut()[60 * i : 60 * i + 100, 100 : 200 if i else 130]
        Image.fromarray(crop).save(photos / f"{i}.png")
    model = saved_model(tmp_path / "model", tiny_model, trained=True)
    settings = EvaluationSettings.model_validate(
        {
            "no_reference": str(photos),
            "scales": [2],
            "steps": [1, 2],
            "metrics": ["psnr_y", "dists"],
        }
    )
    examples = Examples(scales=1)
    found = evaluate(str(model), settings, on_scale=examples.add)
    assert [list(row.values) for row in found.rows] == [["niqe"]] * 3
    assert {(row.psnr, row.ssim) for row in found.rows} == {(None, None)}
    assert found.notes == (
        "psnr_y, dists: there are no originals to compare with",
        "niqe at x2: 0.png: 60x200 holds fewer than two of its blocks of 96 pixels",
    )
    assert set(evaluation_metrics(found.rows)) == {
        "eval/niqe_x2_bicubic", "eval/niqe_x2_nfe1", "eval/niqe_x2_nfe2"
    }  # fmt: skip
    head, *_, last = evaluation_table(found.rows)
    assert "PSNR" not in head and "niqe" in head and last.startswith("GFLOP")
    assert len(examples.found) == 5  # all that have a value
    assert examples.found[0].why.startswith("restored worst: niqe ")
    labels = [panel.label for panel in examples.found[0].panels]
    assert labels[:2] == ["LQ", "bicubic"] and "original" not in labels
    text = report_page("real: evaluation", settings, found, examples.found).decode()
    headline = re.findall(r"<p>(x2: [^<]*)", text)[0]
    assert "(lower is better) against bicubic (95 % interval" in headline
    assert "psnr_rgb" not in text and "PSNR and SSIM on RGB" not in text
    assert "farthest from the result of bicubic" in text
    write_results(str(tmp_path / "out"), settings, found)
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    assert [list(PictureRow.model_validate_json(line).values) for line in lines[:2]] == [
        [],
        ["niqe"],
    ]
