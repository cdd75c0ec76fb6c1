"""The scripts for Slurm, run by a real one: two nodes on this machine.

`apt install --no-install-recommends slurm-wlm munge` brings it; then `pytest -m slurm`.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from datagen.dataset.manifest import load_manifest
from tests.support.eventually import eventually
from tests.support.launch import train
from tests.support.ports import free_port
from tests.support.tiny import WARMUP, RunMaker, same_weights
from training.run_dir.paths import StagePaths
from training.run_dir.starts import read_starts

ROOT = Path(__file__).parents[3]
PHOTOS = ("data/chelsea.png", "data/rocket.jpg")
PROGRAMS = ("munged", "slurmctld", "slurmd")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)), reason="needs the packages slurm-wlm and munge"
    ),
]


class Slurm:
    """Two nodes of two CPUs, with a partition `high` whose jobs preempt those of `low`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RENDEZVOUS_HOST": "127.0.0.1",  # both nodes share this host
        }

    def start(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o711)
        (self.folder / "state").mkdir()
        text = (Path(__file__).parent / "slurm.conf").read_text()
        for name, value in {
            "@DIR@": str(self.folder),
            "@USER@": getpass.getuser(),
            **{f"@PORT{number}@": str(free_port()) for number in range(3)},
        }.items():
            text = text.replace(name, value)
        (self.folder / "slurm.conf").write_text(text)
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self.run(
            *("munged", f"--key-file={key}", f"--socket={munge}/socket"),
            *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        )
        self.run("slurmctld")
        for node in ("n1", "n2"):
            self.run("slurmd", "-N", node)
        eventually(lambda: self.run("sinfo", "-h", "-t", "idle", "-p", "low", "-o", "%D") == "2")

    def stop(self) -> None:
        self.run("scancel", "-u", getpass.getuser())
        for pid in [*self.folder.glob("*.pid"), self.folder / "munge/pid"]:
            os.kill(int(pid.read_text()), signal.SIGTERM)

    def run(self, *words: str) -> str:
        done = subprocess.run(
            words, env=self.environment, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *words: str) -> str:
        """The number of a new job."""
        return self.run("sbatch", "--parsable", *words)

    def state(self, job: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, log: Path) -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        eventually(lambda: self.state(job)["JobState"] in ended, seconds=400, poll=0.5)
        assert self.state(job)["JobState"] == "COMPLETED", log.read_text()


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # Not below pytest's folder: jobs of other users must reach munge's socket.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o711)
    cluster = Slurm(folder)
    cluster.start()
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(600)
def test_a_preempted_training_goes_back_into_the_queue_and_ends_with_the_same_weights(
    slurm: Slurm, run_recipe: RunMaker, tmp_path: Path
) -> None:
    # So many steps that it cannot end before it is preempted; only the signal saves a checkpoint.
    long = {**WARMUP, "steps": 600, "checkpoint_every_steps": 1000, "validate_every_steps": 600}
    undisturbed, recipe = (run_recipe(tmp_path / name, stages=[long]) for name in ("all", "run"))
    train(undisturbed, tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    log = tmp_path / "train.log"
    job = slurm.submit(
        *("--partition=low", "--nodes=2", "--cpus-per-task=2", f"--output={log}"),
        *(str(ROOT / "infra/slurm/train.sh"), str(tmp_path / "recipe.yaml")),
    )
    stage = StagePaths(Path(recipe.output), "warmup")
    eventually(stage.progress.is_file, poll=0.1)
    urgent = slurm.submit("--partition=high", "--nodes=2", "--cpus-per-task=2", "--wrap=sleep 2")
    slurm.wait(urgent, log)
    slurm.wait(job, log)
    assert slurm.state(job)["Restarts"] == "1"
    starts = read_starts(stage)
    assert [start.step == 0 for start in starts] == [True, False], log.read_text()
    assert same_weights(recipe, undisturbed, "warmup")


def test_each_job_of_an_array_builds_the_dataset_of_its_line(slurm: Slurm, tmp_path: Path) -> None:
    lines = []
    for number in (1, 2):
        photos = tmp_path / f"photos {number}"
        photos.mkdir()
        for index in range(number):
            shutil.copy(str(files("skimage") / PHOTOS[index]), photos)
        lines.append(
            f"demo 'sources=[\"{photos}\"]' output={tmp_path}/set-{number} samples_per_photo=1"
        )
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    log = tmp_path / "datasets.log"
    job = slurm.submit(
        *("--array=1-2", f"--output={log}", str(ROOT / "infra/slurm/datasets.sh")),
        str(tmp_path / "lines.txt"),
    )
    for number in ("1", "2"):
        slurm.wait(f"{job}_{number}", log)
    manifests = [load_manifest(f"{tmp_path}/set-{number}") for number in (1, 2)]
    assert [manifest.num_samples for manifest in manifests] == [1, 2]
