"""From photos to a model nothing listens beyond this machine, and no secret is written."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from tests.pipelines.conftest import Ended
from tests.support.dead_servers import refusing_server
from tests.support.s3 import FaultyS3
from tests.support.tiny import WARMUP, RunMaker, dataset_recipe, write_photos

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
SECRETS = {
    "AWS_ACCESS_KEY_ID": "planted-s3-key",
    "AWS_SECRET_ACCESS_KEY": "planted-s3-secret",
    "PREFECT_API_AUTH_STRING": "admin:planted-prefect-password",
    "RAY_AUTH_TOKEN": "planted-ray-token-0123456789abcdef",
}
PASSWORD = "planted-mlflow-password"


def listening(root: psutil.Process) -> set[tuple[str, str]]:
    """The name of each process below one, and the address on which it listens."""
    found = set()
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found.add((process.name(), one.laddr.ip))
    return found


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Of a path that is short enough for Ray's sockets."""
    with TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@pytest.mark.timeout(400)
def test_the_full_flow_keeps_to_this_machine_and_keeps_its_secrets(
    run_recipe: RunMaker,
    faulty_s3: FaultyS3,
    start: Callable[..., subprocess.Popen[str]],
    finished: Callable[[subprocess.Popen[str]], Ended],
    tmp_path: Path,
    ray_folder: Path,
) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    dataset = dataset_recipe(photos, tmp_path).model_dump(mode="json", exclude={"output"})
    training = run_recipe(tmp_path, stages=[WARMUP])
    recipe = {
        "dataset": dataset,
        "training": training.model_dump(mode="json", exclude={"output", "manifest"}),
        "evaluation": {"photos": str(photos), "scales": [4], "steps": [1]},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    words = ("output=out", f"training.checkpoints=s3://{faulty_s3.bucket}/checkpoints")
    with refusing_server() as port:
        env = {
            **SECRETS,
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(ray_folder),
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:{port}",
        }
        process = start("run", "./mine.yaml", *words, env=env)
        found: set[tuple[str, str]] = set()
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                found |= listening(psutil.Process(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
        ended = finished(process)
    assert ended.code == 0, ended.err
    names = {name for name, _ in found}
    assert {"gcs_server", "raylet"} <= names and any("RayTrainWorker" in one for one in names)
    assert {address for _, address in found} <= LOOPBACK, found
    assert set(faulty_s3.keys_seen) == {SECRETS["AWS_ACCESS_KEY_ID"]}
    secrets = [*SECRETS.values(), PASSWORD]
    for secret in (secret.rpartition(":")[2] for secret in secrets):
        assert secret not in ended.out + ended.err
        holding = subprocess.run(
            ["grep", "-rlaF", secret, tmp_path, ray_folder], capture_output=True, text=True
        )
        assert holding.stdout == ""
