"""The pages of a training and its stages: what they say of a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datagen.records import to_json
from tests.training.tracking.test_run_curves import CPUS, finish, recipe
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageProgress
from training.run_dir.starts import record_end, record_start
from training.settings.recipe import TrainingRecipe
from training.tracking.events import Metrics
from training.tracking.journal import journals
from training.tracking.store.send import MAX_TAG
from training.tracking.summary import description
from training.tracking.summary.description import run_page_text, stage_page_text
from training.tracking.summary.stage_facts import facts_of_stages


def log(of: TrainingRecipe, name: str, *values: dict[str, float]) -> None:
    journal = journals(StagePaths(Path(of.output), name).root).metrics
    for number, one in enumerate(values, 1):
        journal.append(Metrics(step=10 * number, time_ms=number, values=one))


def page(of: TrainingRecipe, *, ended: bool = True) -> str:
    return run_page_text(of, facts_of_stages(of), ended=ended)


def test_the_first_line_and_the_table_have_the_headline_numbers(tmp_path: Path) -> None:
    of = recipe(tmp_path, hourly_price=2.0)
    record_start(StagePaths(tmp_path, "warmup"), CPUS, 0)
    held_out = [
        {"val/psnr_nfe1": psnr, "val/gain_nfe1": psnr - 26, "val/loss/fm": 1 / psnr}
        for psnr in (25.0, float("nan"), 27.125, 27.0)
    ]
    log(of, "warmup", *held_out, {"loss/fm": 0.012345, "loss/total": -3.0}, {"loss/fm": 0.02})
    finish(of, "warmup", steps=100, images=12_800, hours=1.5)
    text = page(of)
    first, _, table, _, warmup, distill, _, rest = text.split("\n", 7)
    assert first == (
        f"**psnr_nfe1 27.12** at best, 27 at last, 1 of 2 stages done, 12,800 images, "
        f"1.5 worker hours, price 3.00. In `{tmp_path}`."
    )
    cells = [cell.strip() for cell in warmup.replace("&emsp;", "").strip("|").split("|")]
    assert cells == ["1 warmup", "100", "fm 0.02", "**27.12** (last 27)", "+1.12", "1.5"]
    assert "0 of 100" in distill and "losses" in table
    assert rest.startswith("Nothing stands out.")
    assert f"flowmapsr train {tmp_path}/recipe.json" in text


def test_what_is_worth_a_look_is_listed(tmp_path: Path) -> None:
    of = recipe(tmp_path)
    stage = StagePaths(tmp_path, "warmup")
    for _ in range(5):
        record_start(stage, CPUS, 40)
        record_end(stage, "ValueError: `|" + "too long " * 1000)
    losses = [2.0] * 40 + [1.0] * 40 + [1.5] * 20
    reports = [{"loss/fm": loss, "perf/data_wait_fraction": 0.25} for loss in losses]
    log(
        of,
        "warmup",
        *reports,
        {"val/psnr_nfe1": 27.0, "val/loss/fm": 1.0, "data/skipped_samples": 3.0},
        {"val/psnr_nfe1": 26.0, "val/loss/fm": 1.01, "checkpoints/failed": 2.0},
    )
    text = page(of)
    for part in (
        "- **warmup** skipped 3 samples",
        "- **warmup** restarted 4 times, at step 40 after: ValueError",
        "- **warmup** `loss/fm` rose from 1 to 1.5",
        "- **warmup** `val/psnr_nfe1` was 27 at best and is 26",
        "- **warmup** waited for data 25% of the time",
        "- **warmup** could not write 2 checkpoints",
        "- **warmup** stopped at step 0: ValueError",
    ):
        assert part in text, text
    assert "val/loss/fm" not in text and "Nothing" not in text
    assert len(text) < MAX_TAG  # with every line that it may have
    assert "stopped at" not in page(of, ended=False)


def test_a_training_without_held_out_samples_is_told_how_to_have_some(tmp_path: Path) -> None:
    of = recipe(tmp_path)
    assert "Nothing is held out" not in page(of)  # not known before anything was trained
    log(of, "warmup", {"loss/fm": 1.0})
    assert "`validation_fraction=0.02`" in page(of) and "psnr" not in page(of)


def test_the_commands_name_the_code_and_quote_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {"code.commit": "0123abc", "code.dirty": "true"}
    monkeypatch.setattr(description, "code_tags", lambda: code)
    monkeypatch.setenv("FLOWMAPSR_LAUNCHED", '{"command": "flowmapsr train demo", "user": "me"}')
    of = recipe(tmp_path / "a run")
    text = page(of)
    assert "Started by me with `flowmapsr train demo`." in text
    assert "git checkout 0123abc  # and changes that are not in it" in text
    assert f"flowmapsr train '{tmp_path}/a run/recipe.json'" in text

    class Foreign(TrainingRecipe):
        """Of a system that has commands of its own."""

    assert "flowmapsr train /" not in page(Foreign.model_validate(of.model_dump()))


def test_the_page_of_a_stage_says_what_it_trains_and_from_what(tmp_path: Path) -> None:
    of = recipe(tmp_path / "demo" / "run")
    progress: dict[str, Any] = {"images_per_second": 1.0, "updated": 1.0, "worker_hours": 2.0}
    stage = StagePaths(tmp_path / "demo" / "run", "distill")
    stage.root.mkdir(parents=True)
    found = StageProgress(
        stage="distill", step=40, steps=100, headline="loss/fm", headline_value=1.0,
        checkpoint_step=0, checkpoint_time=0.0, **progress,
    )  # fmt: skip
    stage.progress.write_bytes(to_json(found))
    text = stage_page_text(of, facts_of_stages(of)[1], pictures="`samples` are photos.")
    assert text.startswith(
        "Stage 2 of 2 of **demo/run**: trains `flow_matching` for 100 steps of 256 images at a "
        "learning rate of 4e-05, from `warmup`."
    )
    assert "40 of 100" in text and "`samples` are photos." in text
    registered = of.stages[0].model_copy(update={"init_from": "models:/photos 2/3"})
    of = of.model_copy(update={"stages": (registered, of.stages[1])})
    text = stage_page_text(of, facts_of_stages(of)[0], pictures="")
    assert "from [`models:/photos 2/3`](#/models/photos%202/versions/3)." in text
