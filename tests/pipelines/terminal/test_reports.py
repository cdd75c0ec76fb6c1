"""What commands print at their end."""

from __future__ import annotations

from pipelines.recipes.load import training_recipe
from pipelines.terminal.reports import all_done
from training.run_dir.records import BICUBIC, EvaluationRow


def test_a_whole_run_ends_with_table_times_places_and_the_next_command() -> None:
    rows = [
        EvaluationRow(method=BICUBIC, scale=4, steps=0, psnr=25, ssim=0.8, seconds=0),
        EvaluationRow(method="flowmapsr", scale=4, steps=1, psnr=26.5, ssim=0.9, seconds=0.1),
    ]
    seconds = {"dataset": 30.0, "training": 7200.0, "evaluation": 120.0}
    recipe = training_recipe("demo", ["manifest=/out/dataset/manifest.json", "output=/out/run"])
    ended = all_done(recipe, rows, seconds, page="http://mlflow/#/runs/1")
    text = "\n".join(ended.lines)
    assert "26.50" in text and "30 s (dataset), 2.0 h (training), 2 min (evaluation)" in text
    assert "review    http://mlflow/#/runs/1" in text
    assert ended.lines[-1] == "Next: flowmapsr upscale PHOTO -o OUT.png --model /out/run"
    assert ended.result["manifest"] == "/out/dataset/manifest.json"
    assert ended.result["model"] == "/out/run/stages/adversarial/model"
    assert [row["psnr"] for row in ended.result["rows"]] == [25, 26.5]
