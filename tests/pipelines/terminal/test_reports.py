"""What commands print at their end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.recipes.load import training_recipe
from pipelines.terminal.reports import all_done
from pipelines.terminal.status_report import RUNS_ABREAST, several_runs
from training.run_dir.datasets import plan_datasets, write_datasets
from training.run_dir.paths import StagePaths
from training.run_dir.records import BICUBIC, EvaluationRow, StageRecord
from training.tracking.summary.status import LeftOut, RunComparison, RunStatus, StageStatus


def test_a_whole_run_ends_with_table_times_places_and_the_next_command(tmp_path: Path) -> None:
    rows = [
        EvaluationRow(method=BICUBIC, scale=4, steps=0, psnr=25, ssim=0.8, seconds=0),
        EvaluationRow(method="flowmapsr", scale=4, steps=1, psnr=26.5, ssim=0.9, seconds=0.1),
    ]
    seconds = {"dataset": 30.0, "training": 7200.0, "evaluation": 120.0}
    run = tmp_path / "run"
    recipe = training_recipe("demo", ["manifest=/out/dataset/manifest.json", f"output={run}"])
    run.mkdir()
    (run / "recipe.json").write_text(recipe.model_dump_json())
    done = StagePaths(run, "warmup").done
    done.parent.mkdir(parents=True)
    record = StageRecord(
        stage="warmup", steps=30, images_seen=9, ended="stopped early at step 30 of 90: why",
        recipe_digest="", dataset_digest="", model="",
    )  # fmt: skip
    done.write_text(record.model_dump_json())
    ended = all_done(recipe, rows, seconds, "/out/report.html")
    text = "\n".join(ended.lines)
    assert "26.50" in text and "30 s (dataset), 2.0 h (training), 2 min (evaluation)" in text
    assert "\n  warmup: stopped early at step 30 of 90: why\n" in text
    assert f"\n  logs     {run}/logs\n" in text
    assert "\n  report    /out/report.html\n" in text
    assert f"review    flowmapsr review {run}" in text
    assert ended.lines[-1] == f"Next: flowmapsr upscale PHOTO -o OUT.png --model {run}"
    assert ended.result["manifest"] == "/out/dataset/manifest.json"
    assert ended.result["model"] == f"{run}/stages/adversarial/model"
    assert [row["psnr"] for row in ended.result["rows"]] == [25, 26.5]


def test_a_whole_run_says_what_its_dataset_holds_that_it_was_not_trained_on(
    dataset: Path, tmp_path: Path
) -> None:
    recipe = training_recipe("demo", [f"manifest={dataset}", f"output={tmp_path}/run"])
    write_datasets(recipe, plan_datasets(recipe))
    (tmp_path / "run" / "recipe.json").write_text(recipe.model_dump_json())
    assert all_done(recipe, [], {}, "/out/report.html").result["newer_data"] == ""
    now = plan_datasets(recipe)
    less = {name: one.model_copy(update={"digest": "0"}) for name, one in now.stages.items()}
    write_datasets(recipe, now.model_copy(update={"stages": less}))
    ended = all_done(recipe, [], {}, "/out/report.html")
    assert f"newer     {dataset} has other samples than" in "\n".join(ended.lines)


def stage(**values: Any) -> StageStatus:
    known = {"stage": "warmup", "state": "running", "step": 40, "steps": 100}
    return StageStatus.model_validate({**known, **values})


def cells(lines: Sequence[str], row: str) -> list[str]:
    (line,) = [line for line in lines if line.strip().startswith(f"{row} ")]
    return line.strip().removeprefix(row).split()


def test_trainings_stand_side_by_side_with_what_differs() -> None:
    fast = stage(images_per_second=9.51, seconds_left=120, worker_hours=1.25, on_gpus=True)
    slow = stage(headline="loss/fm", headline_value=0.5, validation={"val/psnr_nfe1": 27.123})
    runs = (RunStatus(run="/x/a/run", stages=(fast,)), RunStatus(run="/x/b", stages=(slow,)))
    settings = {"seed": {"/x/a/run": "1"}, "manifest": {"/x/a/run": "m" * 90, "/x/b": "n"}}
    ended = several_runs(RunComparison(runs=runs, settings=settings))
    lines = ended.lines
    assert ended.ok and lines[0].split() == ["a/run", "b"]
    assert cells(lines, "images/s") == ["9.5", "-"] and cells(lines, "left") == ["2", "min", "-"]
    assert cells(lines, "headline") == ["-", "loss/fm", "0.5"]
    assert cells(lines, "GPU hours") == ["1.25", "-"]
    assert cells(lines, "val/psnr_nfe1") == ["-", "27.12"]
    assert cells(lines, "seed") == ["1", "-"] and max(map(len, lines)) < 80
    assert lines[-1] == "Next: flowmapsr review /x/a/run /x/b"


def test_many_trainings_go_below_each_other_and_damaged_ones_are_named() -> None:
    runs = [
        RunStatus(run=f"/x/{i}", stages=(stage(on_gpus=False),)) for i in range(RUNS_ABREAST + 1)
    ]
    left_out = (LeftOut(run="/x/bad", reason="/x/bad/recipe.json is corrupt"),)
    ended = several_runs(RunComparison(runs=tuple(runs), settings={}, left_out=left_out))
    headings = [line.split() for line in ended.lines if line.split()[:1] in (["0"], ["6"])]
    assert headings == [["0", "1", "2", "3", "4", "5"], ["6"]] and not ended.ok
    text = "\n".join(ended.lines)
    assert "No setting differs." in text and "worker hours" in text
    assert "Left out 1 run:\n  /x/bad/recipe.json is corrupt" in text
