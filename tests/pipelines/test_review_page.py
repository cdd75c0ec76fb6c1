"""The page of `flowmapsr review`, opened in Chromium on the MLflow server that it starts."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page

from pipelines.terminal.reports import review_of
from tests.pipelines.conftest import Ended, start_command
from tests.support.browser import CHROMIUM, browser, text_with
from tests.support.eventually import eventually
from tests.support.logged_trainings import log_training
from tests.support.ports import free_port
from tests.support.processes import kill_tree
from tests.support.tiny import WARMUP, RunMaker
from training.run_dir.paths import StagePaths
from training.settings.recipe import TrainingRecipe
from training.tracking.events import NOTE
from training.tracking.parent_run import parent_run
from training.tracking.store.run_names import RunNames
from training.tracking.summary.description import stage_page_text
from training.tracking.summary.stage_facts import stage_facts

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

LOADED = """[...document.images].filter(
    image => image.src.includes("step%2B2000") && image.naturalWidth).length"""
"""How many pictures of step 2000 are shown."""

Invoke = Callable[..., Ended]


class Served(NamedTuple):
    """`flowmapsr review` of a database, while it serves its page."""

    command: subprocess.Popen[str]
    uri: str
    runs: list[str]
    """IDs of the first, the second and the third training."""


@pytest.fixture(scope="module")
def served(mlflow_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three trainings, of which the second is the best."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    uri = f"sqlite:///{shutil.copy(mlflow_tables, folder)}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("photos", artifact_location=(folder / "files").as_uri())
    runs = [
        log_training(
            client,
            experiment,
            f"runs/{name}",
            settings={"warmup.learning_rate": rate, "model.width": width},
            gain=gain,
            pictures=(1000, 2000),
        )
        for name, rate, width, gain in (
            ("first", "0.0001", "64", 1.0),
            ("second", "0.0002", "96", 2.0),
            ("third", "0.0004", "96", 0.5),
        )
    ]
    words = ("review", "--port", str(port))
    command = start_command(*words, cwd=folder, env={"MLFLOW_TRACKING_URI": uri})
    try:
        assert command.stdout is not None
        while f"  charts  http://127.0.0.1:{port}/#/" not in command.stdout.readline():
            assert command.poll() is None
        yield Served(command, f"http://127.0.0.1:{port}", runs)
    finally:
        kill_tree(command)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    with browser(width=2600, height=1400) as found:
        yield found


def test_the_address_opens_a_table_of_the_trainings_alone(
    served: Served, invoke: Invoke, chromium: Page
) -> None:
    found = invoke("review", "--json", env={"MLFLOW_TRACKING_URI": served.uri}).json
    assert [run["name"] for run in found["runs"]] == ["runs/second", "runs/first", "runs/third"]
    chromium.goto(found["table"])
    shown = text_with(
        chromium,
        *("3 matching runs", "Dataset", "best/psnr_nfe1", "last/psnr_nfe1", "best/gain_nfe1"),
        *("cost/worker_hours", "cost/images_seen", "model.width", "warmup.learning_rate"),
    )
    assert shown.index("runs/second") < shown.index("runs/first")
    assert "1 warmup" not in shown  # no stages
    assert "cost/restarts" not in shown  # 0 everywhere


def test_its_charts_show_quality_first_and_pictures_by_step(
    served: Served, invoke: Invoke, chromium: Page
) -> None:
    found = invoke("review", "photos", "--json", env={"MLFLOW_TRACKING_URI": served.uri}).json
    chromium.goto(found["charts"])
    sections = ["Quality on held-out photos", "Pictures by step", "Losses", "Speed", "Settings (3)"]
    shown = text_with(chromium, *sections, "val/psnr_nfe1", "pictures/photo_2")
    assert sorted(sections, key=shown.index) == sections
    eventually(lambda: chromium.evaluate(LOADED) == 6, seconds=30)  # of two photos of three runs


def test_some_trainings_alone_are_shown(
    served: Served, invoke: Invoke, chromium: Page, tmp_path: Path
) -> None:
    for run_id in served.runs[:2]:
        names = RunNames(tracking_uri=served.uri, experiment="photos", parent=run_id)
        (tmp_path / run_id).mkdir()
        (tmp_path / run_id / "mlflow.json").write_text(names.model_dump_json())
    words = [str(tmp_path / run_id) for run_id in served.runs[:2]]
    chromium.goto(invoke("review", *words, "--json").json["table"])
    assert "runs/third" not in text_with(chromium, "2 matching runs", "runs/first", "runs/second")


def test_the_page_is_made_anew_at_the_end_of_a_training(
    served: Served,
    run_recipe: RunMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.uri)
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP])
    with parent_run(recipe):
        assert review_of(recipe.output) == f"flowmapsr review {recipe.output}"
    assert review_of(recipe.output).endswith("viewStateShareKey=flowmapsr-trainings")


def test_a_stages_page_begins_with_its_description(
    served: Served, undisturbed: TrainingRecipe, chromium: Page
) -> None:
    facts = stage_facts(undisturbed, StagePaths(Path(undisturbed.output), "distill"))
    client = MlflowClient(served.uri)
    experiment = client.get_run(served.runs[0]).info.experiment_id
    (stage, *_) = client.search_runs([experiment], "tags.role = 'stage'")
    text = stage_page_text(undisturbed, facts, pictures="`phi` is the weighting.")
    client.set_tag(stage.info.run_id, NOTE, text)
    page = f"{served.uri}/#/experiments/{experiment}/runs/{stage.info.run_id}"
    chromium.goto(f"{page}?workflowType=machine_learning")
    text_with(chromium, "Description", "Stage 2 of 2", "60 steps", "phi is the weighting")


def test_ctrl_c_ends_the_page_and_all_that_serves_it(served: Served) -> None:
    servers = psutil.Process(served.command.pid).children(recursive=True)
    assert servers
    served.command.send_signal(signal.SIGINT)
    assert served.command.wait(timeout=30) == 0
    assert psutil.wait_procs(servers, timeout=10)[1] == []
