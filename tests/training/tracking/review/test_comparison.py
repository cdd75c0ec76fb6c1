"""By what runs are compared, and what of it the page shows."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from training.tracking.review.comparison import LoggedRun, Pictures, Role, compare, view_of
from training.tracking.store.view_format import written

HELD_OUT = {"best/psnr_nfe1": 26.0, "last/psnr_nfe1": 25.9, "best/gain_nfe1": 1.0}


def run(name: str, params: dict[str, str] | None = None, **metrics: float) -> LoggedRun:
    values = {key.replace("__", "/"): value for key, value in metrics.items()}
    return LoggedRun(name, name, params or {}, values)


def state(role: Role, *runs: LoggedRun, pictures: Pictures | None = None) -> dict[str, Any]:
    """What the page reads."""
    view = view_of(compare(role, runs), filter="", pictures=pictures)
    packed = base64.b64decode(written(view).removeprefix("deflate;"))
    return dict(json.loads(zlib.decompress(packed)))


def test_the_best_come_first_by_what_checkpoints_are_kept_by() -> None:
    one = LoggedRun("a", "a", {}, HELD_OUT)
    two = LoggedRun("b", "b", {}, {**HELD_OUT, "best/psnr_nfe1": 27.0, "best/loss/fm": 0.3})
    found = compare("training", [one, run("c"), two])
    assert [each.name for each in found.runs] == ["b", "a", "c"]
    assert (found.by, found.ascending) == ("best/psnr_nfe1", False)
    assert found.metrics == ("best/psnr_nfe1", "last/psnr_nfe1", "best/gain_nfe1")
    kept = two._replace(params={"warmup.keep_best": "val/loss/fm"})
    found = compare("training", [one, kept])
    assert (found.by, found.ascending, found.runs[0].name) == ("best/loss/fm", True, "b")


def test_without_held_out_samples_the_loss_sorts_else_the_age() -> None:
    runs = [run("a", loss__total=0.5), run("b", loss__total=0.4)]
    found = compare("training", runs)
    assert (found.by, found.ascending) == ("loss/total", True)
    assert [each.name for each in found.runs] == ["b", "a"]
    page = state("training", run("a"), run("b"))
    assert (page["orderByKey"], page["orderByAsc"]) == ("attributes.start_time", False)


def test_settings_that_change_the_result_and_differ_are_columns() -> None:
    same = {"model.kind": "flowmap"}
    one = run("a", {**same, "seed": "1", "workers": "1", "warmup.steps": "9", "output": "/a"})
    two = run("b", {**same, "seed": "2", "workers": "8", "output": "/b"})
    assert compare("training", [one, two]).settings == ("seed", "warmup.steps")
    many = run("c", {f"warmup.s{number}": "1" for number in range(20)})
    assert len(compare("training", [one, many]).settings) == 8
    columns = state("training", one, two)["selectedColumns"]
    assert "params.`seed`" in columns and "params.`output`" not in columns


def test_trainings_of_one_name_are_told_apart_by_their_folders() -> None:
    runs = [run("a", {"output": folder}) for folder in ("/a", "/b")]
    assert "params.`output`" in state("training", *runs)["selectedColumns"]


def test_charts_come_in_the_order_of_a_review_and_all_else_is_closed() -> None:
    metrics = {"val/psnr_nfe1": 26.0, "val/loss/fm": 0.4, "loss/fm": 0.3, "perf/memory_gb": 2.0}
    runs = [LoggedRun(str(n), str(n), {"seed": str(n)}, {**HELD_OUT, **metrics}) for n in (1, 2)]
    page = state("training", *runs, pictures=Pictures(("pictures/photo_1",), 500))
    opened = [one["name"] for one in page["compareRunSections"] if one["display"]]
    closed = [one["name"] for one in page["compareRunSections"] if not one["display"]]
    assert opened == ["Quality on held-out photos", "Pictures by step", "Losses", "Settings"]
    assert closed == ["best", "last", "perf", "pictures", "val/loss"]
    charts = {one["displayName"]: one for one in page["compareRunCharts"] if "displayName" in one}
    # The loss on held-out samples is beside the loss: overfitting shows where they part.
    assert charts["loss/fm"]["selectedMetricKeys"] == ["loss/fm", "val/loss/fm"]
    (pictures,) = [one for one in page["compareRunCharts"] if one["type"] == "IMAGE"]
    assert (pictures["imageKeys"], pictures["step"]) == (["pictures/photo_1"], 500)


def test_datasets_are_compared_by_what_they_hold() -> None:
    runs = [run("a", {"seed": "1"}, num_samples=40, rejected=0), run("b", num_samples=20)]
    page = state("dataset", *runs)
    assert page["orderByKey"] == "attributes.start_time"
    columns = ["metrics.`num_samples`", "tags.`buckets`", "tags.`left_out`", "params.`seed`"]
    assert [one for one in page["selectedColumns"] if "`Dataset`" not in one] == columns
