"""The page that `flowmapsr review` makes, opened in Chromium on a real MLflow server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pipelines.conftest import Ended
from tests.support.browser import CHROMIUM, Browser, browser
from tests.support.eventually import eventually
from tests.support.logged_trainings import client_of, log_training
from tests.support.mlflow_server import mlflow_server
from tests.support.ports import free_port

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

LOADED = """[...document.images].filter(
    image => image.src.includes("step%2B2000") && image.naturalWidth).length"""
"""How many pictures of step 2000 are shown."""

Invoke = Callable[..., Ended]


class Reviewed(NamedTuple):
    uri: str
    first: str
    second: str


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reviewed]:
    """A server with two trainings, the second of which is better."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    client = client_of(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("photos", artifact_location=(folder / "files").as_uri())
    ids = [
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
        )
    ]
    with mlflow_server(folder, port):
        yield Reviewed(f"http://127.0.0.1:{port}", *ids)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium"), width=2600, height=1400) as found:
        yield found


def test_the_address_opens_a_table_of_the_trainings_alone(
    trainings: Reviewed, invoke: Invoke, chromium: Browser
) -> None:
    found = invoke("review", "--json", env={"MLFLOW_TRACKING_URI": trainings.uri}).json
    assert [run["name"] for run in found["runs"]] == ["runs/second", "runs/first"]
    chromium.open(found["table"])
    shown = chromium.wait_for(
        *("2 matching runs", "Dataset", "best/psnr_nfe1", "last/psnr_nfe1", "best/gain_nfe1"),
        *("cost/worker_hours", "cost/images_seen", "model.width", "warmup.learning_rate"),
    )
    assert shown.index("runs/second") < shown.index("runs/first")
    assert "1 warmup" not in shown  # no stages
    assert "cost/restarts" not in shown  # 0 everywhere


def test_its_charts_show_quality_first_and_pictures_by_step(
    trainings: Reviewed, invoke: Invoke, chromium: Browser
) -> None:
    found = invoke("review", "photos", "--json", env={"MLFLOW_TRACKING_URI": trainings.uri}).json
    chromium.open(found["charts"])
    sections = ["Quality on held-out photos", "Pictures by step", "Losses", "Speed", "Settings (3)"]
    shown = chromium.wait_for(*sections, "val/psnr_nfe1", "pictures/photo_2")
    assert sorted(sections, key=shown.index) == sections
    eventually(lambda: chromium.evaluate(LOADED) == 4, seconds=30)  # of two photos of two runs


def test_some_trainings_alone_are_shown(
    trainings: Reviewed, invoke: Invoke, chromium: Browser, tmp_path: Path
) -> None:
    names = {"tracking_uri": trainings.uri, "experiment": "photos", "parent": trainings.first}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mlflow.json").write_text(json.dumps(names))
    chromium.open(invoke("review", "run", "--json").json["table"])
    assert "runs/second" not in chromium.wait_for("1 matching run", "runs/first")
