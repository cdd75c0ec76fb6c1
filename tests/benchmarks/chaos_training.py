"""Disturbs one training at random until 30 kills are done, and compares the resulting models.

Run as `python -m tests.benchmarks.chaos_training [KILLS] [SEED]`. On a Ray cluster of a head and
two nodes it kills a worker, a node (a new one joins) or the driver (the same command is run again)
by SIGKILL, sends the driver SIGTERM, or damages the newest checkpoint and then kills a worker. The
weights must be bit-identical to those of an undisturbed run, and so must be the loss of
every report. Reports are means over ten steps; the first one after a start may cover fewer and is
left out.

The driver does what `flowmapsr train` does, without Prefect, whose loss is tested separately.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import safetensors.torch
import torch

from datagen.build.in_process import build_in_process
from datagen.io.lock import TRAINING, output_lock
from pipelines.cluster.train_launcher import training_workers
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.processes import kill_tree
from tests.support.ray_processes import head_words, ray_actors, start_node
from tests.support.tiny import DISTILL, MODEL, WARMUP, dataset_recipe, write_photos
from training.loop import LOG_EVERY
from training.preflight import check_run
from training.run_dir.paths import finished_stages
from training.run_dir.recipe_guard import write_recipe
from training.settings.recipe import TrainingRecipe
from training.tracking.tracker import reset_tracking

KILLS = 30
VICTIMS = {"worker": 0.4, "node": 0.15, "driver": 0.15, "SIGTERM": 0.15, "checkpoint": 0.15}
STAGES = [
    {**stage, "steps": 2500, "checkpoint_every_steps": 20, "keep_checkpoints": 3}
    for stage in (WARMUP, DISTILL)
]


def main() -> None:
    kills, seed = (int(word) for word in (*sys.argv[1:], KILLS, 0)[:2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        build_in_process(dataset_recipe(write_photos(folder / "photos", 3), folder / "dataset"))
        cluster = Cluster(folder)
        try:
            reference, disturbed = recipe_for(folder, "reference"), recipe_for(folder, "disturbed")
            start = time.monotonic()
            assert run_driver(reference, folder / "reference.log").wait() == 0
            undisturbed = time.monotonic() - start
            chaos = Chaos(cluster, random.Random(seed), kills)
            chaos.run(disturbed)
        finally:
            cluster.stop()
        compared = compare(reference, disturbed)
    print("\n| kills | " + " | ".join(VICTIMS) + " | starts | seconds | undisturbed |")
    print("|---" * (len(VICTIMS) + 4) + "|")
    counts = " | ".join(str(chaos.killed[victim]) for victim in VICTIMS)
    print(
        f"| {chaos.killed.total()} | {counts} | {chaos.starts} | {chaos.seconds:.0f} | "
        f"{undisturbed:.0f} |\n\nWeights of {len(STAGES)} stages and {compared} reported losses "
        "are bit-identical to those of the undisturbed run."
    )


class Cluster:
    """A head without CPUs and two nodes with one each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        os.environ.update(RAY_ADDRESS=self.address, RAY_AUTH_MODE="disabled")
        words = (*head_words(self.address), "--num-cpus=0")
        self.head = start_node(*words, log=folder / "head.log")
        self.nodes = [self._node(index) for index in range(2)]

    def _node(self, index: int) -> subprocess.Popen[bytes]:
        log = self.folder / f"node{index}.log"
        return start_node(f"--address={self.address}", "--num-cpus=1", log=log)

    def replace(self, index: int) -> None:
        """Kills a node and starts a new one."""
        kill_tree(self.nodes[index])
        self.nodes[index] = self._node(index)

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        return ray_actors("RayTrainWorker", self.head, *self.nodes)

    def stop(self) -> None:
        for node in (*self.nodes, self.head):
            kill_tree(node)


class Chaos:
    """Kills a random part of the cluster again and again."""

    def __init__(self, cluster: Cluster, rng: random.Random, kills: int) -> None:
        self.cluster = cluster
        self.rng = rng
        self.left = kills
        self.killed: Counter[str] = Counter()
        self.starts = 0
        self.seconds = 0.0

    def run(self, recipe: TrainingRecipe) -> None:
        """Trains while killing until all stages are done."""
        begin = time.monotonic()
        log = self.cluster.folder / "disturbed.log"
        while finished_stages(recipe) is None:
            self.starts += 1
            driver = run_driver(recipe, log)
            while driver.poll() is None:
                self._wait_for_progress(driver, Path(recipe.output))
                if self.left and driver.poll() is None:
                    self._kill(driver, Path(recipe.output))
            assert self.left or driver.returncode == 0, log.read_text()
        self.seconds = time.monotonic() - begin

    def _wait_for_progress(self, driver: subprocess.Popen[bytes], run: Path) -> None:
        before = _progress(run)
        eventually(lambda: driver.poll() is not None or _progress(run) != before, seconds=600)
        time.sleep(self.rng.uniform(0, 2))

    def _kill(self, driver: subprocess.Popen[bytes], run: Path) -> None:
        victim = self.rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        workers = self.cluster.workers()
        if not workers:
            return
        match victim:
            case "worker":
                self.rng.choice(workers).kill()
            case "node":
                self.cluster.replace(self.rng.randrange(2))
            case "driver":
                driver.kill()
                driver.wait()
            case "SIGTERM":
                driver.terminate()
                driver.wait()
            case "checkpoint":
                self._damage_newest(run)
                self.rng.choice(workers).kill()
        self.left -= 1
        self.killed[victim] += 1
        print(f"{victim} ({self.left} left)", file=sys.stderr, flush=True)

    def _damage_newest(self, run: Path) -> None:
        """Truncates or alters a file of the newest checkpoint."""
        commits = sorted(run.glob("stages/*/checkpoints/step-*/trainer_state.json"))
        if not commits:
            return
        newest = max(commits, key=lambda path: path.stat().st_mtime)
        victim = self.rng.choice(sorted(newest.parent.iterdir()))
        data = bytearray(victim.read_bytes())
        if self.rng.random() < 0.5:
            data = data[: len(data) // 2]
        else:
            data[len(data) // 2] ^= 0xFF
        victim.write_bytes(data)


def _progress(run: Path) -> str:
    found = sorted(run.glob("stages/*/progress.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].read_text() if found else ""


def compare(reference: TrainingRecipe, disturbed: TrainingRecipe) -> int:
    """Asserts equal weights and losses of every stage; returns the number of losses compared."""
    compared = 0
    for stage in reference.stages:
        homes = [Path(recipe.output) / "stages" / stage.name for recipe in (reference, disturbed)]
        ours, theirs = (
            safetensors.torch.load_file(home / "model" / "model.safetensors") for home in homes
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stage.name
        expected, found = (losses(home) for home in homes)
        for step in expected.keys() & found.keys():
            assert found[step] == expected[step], (stage.name, step)
            compared += 1
    return compared


def losses(home: Path) -> dict[int, float]:
    """The last reported loss at every multiple of ten steps, except the first after each start."""
    found: dict[int, float] = {}
    before = 0
    for line in (home / "tracking.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] != "metrics" or "loss/total" not in event["values"]:
            continue
        if event["step"] == before + LOG_EVERY:
            found[event["step"]] = event["values"]["loss/total"]
        before = event["step"]
    return found


def run_driver(recipe: TrainingRecipe, log: Path) -> subprocess.Popen[bytes]:
    path = log.with_suffix(".json")
    path.write_text(recipe.model_dump_json())
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.chaos_training", "drive", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def drive(path: str) -> None:
    """What the command does with a recipe, without Prefect."""
    recipe = TrainingRecipe.model_validate_json(Path(path).read_bytes())
    with output_lock(recipe.output, TRAINING) as lock:
        check_run(recipe)
        write_recipe(recipe, on_replace=reset_tracking)
        with training_workers(recipe, lock) as workers:
            for stage in recipe.stages:
                workers.finished(stage.name)


def recipe_for(folder: Path, name: str) -> TrainingRecipe:
    return TrainingRecipe.model_validate(
        {
            "manifest": str(folder / "dataset"),
            "output": str(folder / name),
            "workers": 2,
            "model": MODEL,
            "stages": STAGES,
            "max_failures": 10 * KILLS,
        }
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        drive(sys.argv[2])
    else:
        main()
