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
from training.settings.recipe import TrainingRecipe

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
        """Ends jobs first, as `ray.sh` ends Ray through Slurm, and then the daemons."""
        try:
            self.run("scancel", "-u", getpass.getuser())
            eventually(lambda: not self.run("squeue", "-h"), seconds=120, poll=0.5)
        finally:
            for pid in (*self.folder.glob("*.pid"), *self.folder.glob("munge/pid")):
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
        eventually(lambda: self.state(job)["JobState"] in ended, seconds=700, poll=0.5)
        if self.state(job)["JobState"] != "COMPLETED":
            logs = (log, *self.folder.glob(f"*-{job}-*.log"))
            pytest.fail("\n".join(path.read_text() for path in logs))


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # Not below pytest's folder: jobs of other users must reach munge's socket.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o711)
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        try:
            cluster.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


LONG = {**WARMUP, "steps": 600, "checkpoint_every_steps": 1000, "validate_every_steps": 600}
"""So many steps that it does not end before it is told to; only that saves a checkpoint."""
NODES = ("--partition=low", "--nodes=2", "--cpus-per-task=2")


@pytest.fixture(scope="module")
def undisturbed(run_recipe: RunMaker, tmp_path_factory: pytest.TempPathFactory) -> TrainingRecipe:
    """A run that nothing stopped; only to be read."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = run_recipe(folder / "run", stages=[LONG])
    train(recipe, folder)
    return recipe


class Training:
    """A job that trains, in a folder of its own."""

    def __init__(self, slurm: Slurm, recipe: TrainingRecipe, *words: str) -> None:
        """
        Args:
            words: options of sbatch, the script and its arguments; RECIPE stands for the recipe's
                file.
        """
        self.slurm, self.recipe, folder = slurm, recipe, Path(recipe.output).parent
        path, self.log = folder / "recipe.yaml", folder / "train.log"
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        words = tuple(str(path) if word == "RECIPE" else word for word in words)
        self.job = slurm.submit(*NODES, f"--output={self.log}", *words)
        self.stage = StagePaths(Path(recipe.output), "warmup")
        eventually(self.stage.progress.is_file, poll=0.1)

    def ends_like(self, undisturbed: TrainingRecipe) -> None:
        """Waits for the end of a training that was put back into the queue once."""
        self.slurm.wait(self.job, self.log)
        text = self.log.read_text()
        assert self.slurm.state(self.job)["Restarts"] == "1", text
        starts = read_starts(self.stage)
        assert [start.step == 0 for start in starts] == [True, False], text
        assert same_weights(self.recipe, undisturbed, "warmup")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "words", [("train.sh", "RECIPE"), ("ray.sh", "train", "RECIPE", "--cluster")]
)
def test_a_preempted_training_goes_back_into_the_queue_and_ends_with_the_same_weights(
    words: tuple[str, ...],
    slurm: Slurm,
    undisturbed: TrainingRecipe,
    run_recipe: RunMaker,
    tmp_path: Path,
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[LONG])
    training = Training(slurm, recipe, f"{ROOT}/infra/slurm/{words[0]}", *words[1:])
    urgent = slurm.submit("--partition=high", *NODES[1:], "--wrap=sleep 2")
    slurm.wait(urgent, training.log)
    training.ends_like(undisturbed)


@pytest.mark.timeout(600)
def test_a_training_is_told_of_its_time_limit_and_goes_on_after_it(
    slurm: Slurm, run_recipe: RunMaker, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[{**LONG, "steps": 5000}])
    script = f"{ROOT}/infra/slurm/train.sh"
    training = Training(slurm, recipe, "--time=60", "--signal=B:TERM@300", script, "RECIPE")
    hours, minutes, _ = map(int, slurm.state(training.job)["RunTime"].split(":"))
    limit = 60 * hours + minutes + 3  # two minutes and more from now, which is after the warning
    slurm.run("scontrol", "update", f"JobId={training.job}", f"TimeLimit={limit}")
    eventually(lambda: slurm.state(training.job)["Restarts"] == "1")
    slurm.run("scontrol", "update", f"JobId={training.job}", "TimeLimit=60")
    eventually(lambda: len(read_starts(training.stage)) == 2, seconds=420)
    slurm.run("scancel", "--signal=KILL", training.job)
    assert read_starts(training.stage)[1].step > 0, training.log.read_text()


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
