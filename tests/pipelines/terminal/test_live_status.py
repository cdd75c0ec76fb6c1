"""`flowmapsr status --watch` on folders as trainings and builds leave them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datagen.dataset.layout import MANIFEST, TASKS
from datagen.dataset.tasks import PhotoVariants, Plan, ShardTask
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.io.lock import BUILD, TRAINING, output_lock
from datagen.photos.source_file import SourceFile
from pipelines.recipes.load import dataset_recipe, training_recipe
from pipelines.terminal import live_status
from pipelines.terminal.live_status import await_begin, look_at, watch
from tests.pipelines.conftest import Ended
from training.run_dir.paths import RunPaths, StagePaths
from training.run_dir.records import StageProgress, StageRecord
from training.tracking.summary.status import NoRun


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one stage, which nobody trains."""
    recipe = training_recipe("demo", [f"output={tmp_path}/run", "manifest=/set"])
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    paths = RunPaths(tmp_path / "run")
    StagePaths(paths.root, "warmup").root.mkdir(parents=True)
    paths.recipe.write_text(recipe.model_dump_json())
    return paths.root


def write_step(run: Path, step: int) -> None:
    progress = StageProgress(
        stage="warmup", step=step, steps=360, images_per_second=64.0, headline="loss/fm",
        headline_value=0.5, updated=time.time() + 1, checkpoint_step=0, checkpoint_time=0.0,
        worker_hours=0.0,
    )  # fmt: skip
    StagePaths(run, "warmup").progress.write_text(progress.model_dump_json())


def finish(run: Path) -> None:
    record = StageRecord(
        stage="warmup", steps=360, images_seen=9, ended="all 360 steps", recipe_digest="",
        dataset_digest="", model="model",
    )  # fmt: skip
    StagePaths(run, "warmup").done.write_text(record.model_dump_json())


def test_each_change_of_a_training_is_a_line_until_it_is_done(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acts: list[Callable[[], None]] = [lambda: None, lambda: write_step(run, 7), lambda: finish(run)]
    monkeypatch.setattr(live_status.time, "sleep", lambda _: acts.pop(0)())
    write_step(run, 3)
    with output_lock(str(run), TRAINING):
        write_step(run, 3)
        result = watch(look_at([str(run)]))
    assert result.ok and not acts
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{run}: warmup running 3/360 steps, loss/fm 0.5, 64.0 images/s, ")
    assert "warmup running 7/360 steps" in second
    assert last == f"{run}: warmup done 360/360 steps, loss/fm 0.5, all 360 steps"
    assert result.lines[-1].startswith("Next: flowmapsr upscale")


def test_a_training_that_is_not_at_work_ends_the_watch_as_failed(
    run: Path, invoke: Callable[..., Ended]
) -> None:
    write_step(run, 3)
    ended = invoke("status", str(run), "--watch", "--json")
    assert ended.code == 1 and ended.json["stages"][0]["state"] == "stopped"
    assert ended.err.startswith(f"{run}: warmup stopped 3/360 steps")
    assert invoke("status", str(run)).code == 0, "without --watch the state is the answer"


def test_ctrl_c_ends_the_watch(run: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    with output_lock(str(run), TRAINING):
        watching = start("status", str(run), "--watch")
        assert watching.stderr is not None
        while "warmup running" not in watching.stderr.readline():
            pass
        os.kill(watching.pid, signal.SIGINT)
        _, err = watching.communicate(timeout=60)
    assert watching.returncode == 130 and "Traceback" not in err


def test_a_build_is_watched_from_its_plan_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "set"
    photos = [PhotoVariants(SourceFile(f"/{name}", 1, "1"), 9, 9, 0, 3) for name in "ab"]
    tasks = tuple(ShardTask(index=i, photos=(photo,)) for i, photo in enumerate(photos))
    recipe = dataset_recipe("demo", ["sources=[/photos]", f"output={dataset}"])
    plan = Plan(recipe=recipe, recipe_digest="", base=None, tasks=tasks, rejected=())

    def write_plan() -> None:
        (dataset / "plan.json").write_text(plan.model_dump_json())

    def end_task() -> None:
        (dataset / TASKS).mkdir()
        (dataset / tasks[0].path).touch()

    def complete() -> None:
        (dataset / MANIFEST).touch()
        (dataset / "plan.json").unlink()

    acts = [write_plan, end_task, complete]
    monkeypatch.setattr(live_status.time, "sleep", lambda _: acts.pop(0)())
    with output_lock(str(dataset), BUILD):
        result = watch(look_at([str(dataset)]))
    assert result.ok
    assert capsys.readouterr().err.splitlines() == [
        f"{dataset}: building, planning",
        f"{dataset}: building, 0/6 samples, 0/2 tasks",
        f"{dataset}: building, 3/6 samples, 1/2 tasks",
        f"{dataset}: complete",
    ]


def test_a_stopped_build_says_how_it_goes_on(tmp_path: Path, invoke: Callable[..., Ended]) -> None:
    recipe = dataset_recipe("demo", ["sources=[/photos]", f"output={tmp_path}/set"])
    plan = Plan(recipe=recipe, recipe_digest="", base=None, tasks=(), rejected=())
    (tmp_path / "set").mkdir()
    (tmp_path / "set/plan.json").write_text(plan.model_dump_json())
    ended = invoke("status", "set", "--watch")
    assert ended.code == 1
    assert "Next: flowmapsr dataset build RECIPE output=" in ended.out


def test_on_a_terminal_the_view_is_drawn_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acts: list[Callable[[], None]] = [lambda: finish(run)]
    monkeypatch.setattr(live_status.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(live_status.time, "sleep", lambda _: acts.pop(0)())
    with output_lock(str(run), TRAINING):
        assert watch(look_at([str(run)])).ok
    shown = capsys.readouterr().err
    assert "running" in shown and "360/360" in shown


def test_a_watch_waits_for_a_build_that_is_about_to_begin(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FlowmapsrError, match=f"{root}.*(no build of a dataset|no training run)"):
        look_at([root])
    recipe = dataset_recipe("demo", ["sources=[/photos]", f"output={root}"])
    plan = Plan(recipe=recipe, recipe_digest="", base=None, tasks=(), rejected=())
    acts: list[Callable[[], None]] = [
        lambda: None,
        lambda: storage.write_bytes(f"{root}/plan.json", plan.model_dump_json().encode()),
    ]
    monkeypatch.setattr(live_status.time, "sleep", lambda _: acts.pop(0)())
    seen = await_begin([root])()
    assert not acts and seen.lines == [f"{root}: stopped, planning"]
    monkeypatch.setattr(live_status, "BEGIN_SECONDS", -1.0)
    with pytest.raises(NoRun, match="holds no training run"):
        await_begin(["/nowhere"])
    monkeypatch.setattr(live_status, "BEGIN_SECONDS", 600.0)

    def refused(_: object) -> None:
        raise FlowmapsrError("S3 refuses the key")

    monkeypatch.setattr(live_status, "look_at", refused)
    with pytest.raises(FlowmapsrError, match="refuses the key"):  # at once: no sleep is left
        await_begin([root])
