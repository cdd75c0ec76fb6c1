"""What ends a command early is answered before any flow: the server would refuse it here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from datagen.build.survey import survey
from datagen.errors import FlowmapsrError
from datagen.io.lock import BUILD, TRAINING, output_lock
from datagen.photos.scan import HeaderReader
from datagen.settings import DatasetRecipe
from pipelines.preflight import check_build, check_surroundings
from tests.pipelines.conftest import Ended
from tests.support.dead_servers import refusing_server

Run = Callable[..., Ended]


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that is there, and takes no run."""
    with refusing_server() as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        yield


@pytest.mark.usefixtures("prefect")
def test_a_place_that_is_taken(invoke: Run, build_words: Run, tmp_path: Path) -> None:
    with output_lock(str(tmp_path / "set"), BUILD):
        ended = invoke(*build_words(tmp_path / "set", "--json"))
    assert ended.code == 1 and "another build is writing there" in ended.json["error"]


@pytest.mark.usefixtures("prefect")
@pytest.mark.parametrize(("kind", "folder"), [(TRAINING, "run"), (BUILD, "dataset")])
def test_a_part_of_a_full_run_that_is_taken(
    kind: object, folder: str, invoke: Run, tmp_path: Path
) -> None:
    with output_lock(str(tmp_path / "demo" / folder), kind):  # type: ignore[arg-type]
        ended = invoke("demo", "--output", str(tmp_path / "demo"), "--json")
    assert ended.code == 1 and f"demo/{folder}: another" in ended.json["error"]


@pytest.mark.usefixtures("prefect")
def test_an_output_that_cannot_be_written(invoke: Run, build_words: Run) -> None:
    ended = invoke(*build_words("/proc/set", "--json"))
    assert ended.code == 1 and ended.json["error"].startswith("/proc/set")
    assert ended.json["error"].endswith("nothing can be made there; choose another location")


@pytest.mark.usefixtures("prefect")
def test_too_many_photos_that_cannot_be_used(invoke: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "empty.png").touch()
    words = ("dataset", "build", "demo", "sources=[photos]", "output=set", "--json")
    ended = invoke(*words)
    assert ended.code == 1 and ended.json["rejected"] == {"empty file": 1}


@pytest.mark.usefixtures("prefect")
def test_many_photos_are_looked_at_before_any_server_starts(invoke: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(1000):
        (tmp_path / "photos" / f"{index}.png").touch()
    words = ("dataset", "build", "demo", "sources=[photos]", "output=set", "--json")
    ended = invoke(*words)
    assert ended.json.get("rejected") == {"empty file": 1000}, ended.json


def test_the_command_itself_looks_at_photos_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(200):
        (tmp_path / "photos" / f"{index}.png").touch()
    recipe = DatasetRecipe(sources=(str(tmp_path / "photos"),), output=str(tmp_path / "set"))
    read: list[object] = []

    def slow(self: HeaderReader, chunk: Sequence[object]) -> list[object]:
        read.extend(chunk)
        time.sleep(0.3)
        return list(chunk)

    monkeypatch.setattr(HeaderReader, "__call__", slow)
    monkeypatch.setattr("pipelines.preflight.LOOKING_SECONDS", 0.5)
    check_build(recipe, survey(recipe))
    assert 32 <= len(read) <= 96
    assert not (tmp_path / "set" / "plan.json").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PREFECT_HOME", "/dev/null/home", "set PREFECT_HOME, or HOME, to a place"),
        ("MLFLOW_TRACKING_URI", "sqlite:////proc/mlflow.db", "set MLFLOW_TRACKING_URI, such as"),
        ("RAY_TMPDIR", "/proc", "set RAY_TMPDIR, such as"),
        ("RAY_TMPDIR", "{folder}/" + 50 * "x", "too long .* set RAY_TMPDIR to a shorter one"),
    ],
)
def test_surroundings_that_servers_cannot_use(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value.format(folder=tmp_path))
    with pytest.raises(FlowmapsrError, match=message):
        check_surroundings()


def test_a_folder_of_a_server_that_is_a_lost_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prefect").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    with pytest.raises(FlowmapsrError, match=r"prefect is a link to .*/disk, which is not there"):
        check_surroundings()


@pytest.mark.usefixtures("prefect")
def test_an_output_below_a_lost_link(invoke: Run, build_words: Run, tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(tmp_path / "disk")
    ended = invoke(*build_words(tmp_path / "mounted" / "set", "--json"))
    assert ended.code == 1
    assert f"{tmp_path}/mounted is a link to {tmp_path}/disk, which is not" in ended.json["error"]
    assert not (tmp_path / "disk").exists()


def test_files_beside_the_output_are_announced_while_they_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    check_surroundings()
    assert f"MLflow's runs to {tmp_path}/mlflow.db" in capsys.readouterr().err
    assert "mlflow.db" not in os.listdir(tmp_path)
    (tmp_path / "mlflow.db").touch()
    check_surroundings()
    assert "mlflow.db" not in capsys.readouterr().err
