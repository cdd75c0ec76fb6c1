"""`flowmapsr review` on stores that have everything, and on those that lack something."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.pipelines.conftest import Ended
from tests.support.logged_trainings import log_training
from tests.support.ports import free_port

Invoke = Callable[..., Ended]


@pytest.fixture
def store(mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the database that `flowmapsr` finds."""
    shutil.copy(mlflow_tables, tmp_path / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


def experiment(store: MlflowClient, name: str, *trainings: str, gain: float | None = 1.0) -> str:
    found = store.create_experiment(name)
    for number, training in enumerate(trainings):
        log_training(store, found, training, settings={"seed": str(number)}, gain=gain)
    return str(found)


def run_folder(folder: Path, run_id: str, *, uri: str | None = None) -> None:
    folder.mkdir()
    uri = uri or f"sqlite:///{folder.parent / 'mlflow.db'}"
    names = {"tracking_uri": uri, "experiment": "photos", "parent": run_id}
    (folder / "mlflow.json").write_text(json.dumps(names))


def test_of_several_experiments_one_is_chosen(store: MlflowClient, invoke: Invoke) -> None:
    experiment(store, "small", "runs/one")
    experiment(store, "large", "runs/two", "runs/three")
    experiment(store, "of others")
    found = invoke("review", "--json").json
    assert [one["experiment"] for one in found["experiments"]] == ["large", "small"]
    assert [one["newest_training"] for one in found["experiments"]] == ["runs/three", "runs/one"]
    listed = invoke("review").out
    assert "runs/three" in listed and listed.endswith("Next: flowmapsr review large\n")
    found = invoke("review", "large", "--json").json
    assert (found["experiment"], len(found["runs"]), found["problems"]) == ("large", 2, [])
    text = invoke("review", "large", "--no-serve").out
    assert "Trainings of experiment large, by best/psnr_nfe1:" in text
    assert "/#/experiments/" in text and "compareRunsMode=CHART" in text


def test_runs_have_colors_of_their_own(store: MlflowClient, invoke: Invoke) -> None:
    place = experiment(store, "photos", *(f"runs/{number}" for number in range(3)), gain=None)
    store.set_tag(store.search_runs([place])[0].info.run_id, "mlflow.runColor", "#123456")
    invoke("review", "--json")
    runs = store.search_runs([place], "tags.role = 'training'")
    colors = [run.data.tags["mlflow.runColor"] for run in runs]
    invoke("review", "--json")  # they stay
    runs = store.search_runs([place], "tags.role = 'training'")
    assert colors == [run.data.tags["mlflow.runColor"] for run in runs]
    assert len(set(colors)) == 3


def test_mistakes_are_answered_in_a_line(
    store: MlflowClient, invoke: Invoke, tmp_path: Path
) -> None:
    place = experiment(store, "photos", "runs/one", "runs/two", gain=None)
    other = experiment(store, "other", "runs/three", gain=None)
    experiment(store, "of others")
    store.delete_experiment(experiment(store, "deleted"))
    one, two = (run.info.run_id for run in store.search_runs([place], "tags.role = 'training'"))
    (three,) = store.search_runs([other], "tags.role = 'training'")
    store.delete_run(two)
    run_folder(tmp_path / "one", one)
    run_folder(tmp_path / "two", two)
    run_folder(tmp_path / "three", three.info.run_id)
    run_folder(tmp_path / "lost", "0" * 32)
    run_folder(tmp_path / "elsewhere", one, uri=f"sqlite:///{tmp_path}/none.db")
    (tmp_path / "unsent").mkdir()
    (tmp_path / "unsent" / "recipe.json").write_text("{}")

    def answer(*words: str) -> str:
        ended = invoke("review", *words)
        assert (ended.code, ended.out) == (1, "") and ended.err.count("\n") == 1
        return ended.err

    assert "photo is no folder of a run, and no experiment" in answer("photo")
    assert "did you mean photos?" in answer("photo")
    assert "'of others' has no trainings and no datasets of flowmapsr" in answer("of others")
    assert "'deleted' was deleted in MLflow" in answer("deleted")
    assert "give folders of runs, or the name of one experiment" in answer("photos", "other")
    assert "unsent has no mlflow.json: nothing of it is in MLflow" in answer("unsent")
    assert "two is left out: its run was deleted in MLflow" in answer("two")
    assert "lost is left out: its run was deleted in MLflow" in answer("lost")
    assert "these runs are in several experiments: " in answer("one", "three")
    assert "in different MLflow stores" in answer("one", "elsewhere")
    assert f"there is no MLflow store at sqlite:///{tmp_path}/none.db" in answer("elsewhere")
    found = invoke("review", "one", "two", "--json").json
    assert [run["name"] for run in found["runs"]] == ["runs/two"]
    assert "two is left out" in found["problems"][0]


def test_a_store_that_takes_nothing_is_shown(
    store: MlflowClient, invoke: Invoke, tmp_path: Path
) -> None:
    place = experiment(store, "photos", "runs/one")
    read_only = {"MLFLOW_TRACKING_URI": f"sqlite:///file:{tmp_path}/mlflow.db?mode=ro&uri=true"}
    found = invoke("review", "--json", env=read_only).json
    assert (
        "MLflow does not keep these" in found["problems"][0] and "readonly" in found["problems"][0]
    )
    assert "searchFilter=tags.role" in found["table"] and "viewStateShareKey" not in found["table"]
    kept = invoke("review", "--json").json
    assert kept["problems"] == [] and f"/#/experiments/{place}/runs" in kept["table"]
    found = invoke("review", "--json", env=read_only).json
    assert "the view is an earlier one" in found["problems"][0]
    assert found["table"] == kept["table"]


@pytest.mark.parametrize("damage", ["other version", "no database", "no trainings"])
def test_a_store_that_cannot_be_read_is_named(
    mlflow_tables: Path, invoke: Invoke, tmp_path: Path, damage: str
) -> None:
    path = Path(shutil.copy(mlflow_tables, tmp_path))
    expected = {
        "other version": "is of a newer MLflow than",
        "no database": "cannot be read (file is not a database)",
        "no trainings": "has no trainings yet",
    }
    if damage == "other version":
        with sqlite3.connect(path) as database:
            database.execute("UPDATE alembic_version SET version_num = 'of tomorrow'")
    elif damage == "no database":
        path.write_text("This is text. " * 100)
    ended = invoke("review", env={"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"})
    assert ended.code == 1 and str(path) in ended.err and expected[damage] in ended.err


@contextmanager
def server_of_mlflow(version: str) -> Iterator[str]:
    """Answers like MLflow of that version, with one training in one experiment."""
    info = {"run_id": "abc", "run_name": "runs/one", "experiment_id": "7", "status": "FINISHED"}
    tag = {"key": "role", "value": "training"}
    info |= {"start_time": 1, "artifact_uri": "/none", "lifecycle_stage": "active"}
    found = {"experiment_id": "7", "name": "photos", "lifecycle_stage": "active"}
    answers: dict[str, Any] = {
        "experiments/get-by-name": {"experiment": found},
        "experiments/get": {"experiment": found},
        "runs/search": {"runs": [{"info": info, "data": {"tags": [tag]}}]},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix("/api/2.0/mlflow/")
            text = version if self.path == "/version" else json.dumps(answers.get(name))
            self.send_response(404 if text == "null" else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_of_mlflow_2_has_the_plain_page(invoke: Invoke) -> None:
    with server_of_mlflow("2.22.0") as uri:
        found = invoke("review", "photos", "--json", env={"MLFLOW_TRACKING_URI": uri}).json
    (problem,) = found["problems"]
    assert problem.endswith("these need MLflow 3, and the server has MLflow 2")
    assert found["table"].startswith(f"{uri}/#/experiments/7?")
    assert "searchFilter=tags.role" in found["table"] and found["sorted_by"] is None


def test_a_server_that_is_down_costs_seconds(invoke: Invoke) -> None:
    uri = f"http://me:secret@127.0.0.1:{free_port()}"
    begun = time.monotonic()
    ended = invoke("review", env={"MLFLOW_TRACKING_URI": uri})
    assert ended.code == 1 and "does not answer" in ended.err and "secret" not in ended.err
    assert time.monotonic() - begun < 10
