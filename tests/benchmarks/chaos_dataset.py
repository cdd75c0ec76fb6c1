"""Kills dataset builds at random until 200 kills are done, and compares every byte at the end.

Run as `python -m tests.benchmarks.chaos_dataset [KILLS] [SEED]`. Victims are a worker, the driver,
or the whole machine (the Ray cluster and the driver at once), all by SIGKILL. A build that ends is
started again by the same command until it finishes; then the SHA-256 of every file is compared with
an undisturbed build. The driver does what `flowmapsr dataset build` does, without Prefect, whose
loss is tested separately.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from datagen.build.in_process import build_in_process
from datagen.build.plan import plan_dataset
from datagen.build.survey import survey
from datagen.io.lock import BUILD, output_lock
from datagen.photos.sources import list_sources
from datagen.review.verify import verify_dataset
from datagen.settings import DatasetRecipe
from pipelines.cluster.chunk_map import map_chunks_on_cluster
from pipelines.cluster.ray_session import ray_cluster
from pipelines.flows.dataset import finish_step, shards_step
from pipelines.recipes.load import dataset_recipe
from tests.support.files import digests
from tests.support.ports import free_port
from tests.support.processes import kill_tree
from tests.support.ray_processes import head_words, ray_actors, start_node

KILLS = 200
KILLS_A_BUILD = 20
PHOTOS = 60
VICTIMS = {"worker": 0.8, "driver": 0.15, "machine": 0.05}


def main() -> None:
    kills, seed = (int(word) for word in (*sys.argv[1:], KILLS, 0)[:2])
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos")
        build_in_process(recipe_for(folder, "undisturbed"))
        expected = digests(folder / "undisturbed")
        chaos = Chaos(folder, rng)
        print(
            "\n| build | kills | of a worker | of the driver | of the machine | starts | seconds |"
        )
        print("|---|---|---|---|---|---|---|")
        builds = 0
        while chaos.killed.total() < kills:
            before, start = Counter(chaos.killed), time.monotonic()
            starts = chaos.build(f"build{builds}", min(KILLS_A_BUILD, kills - chaos.killed.total()))
            assert digests(folder / f"build{builds}") == expected, f"build {builds} differs"
            assert verify_dataset(str(folder / f"build{builds}")) == []
            done = chaos.killed - before
            counts = " | ".join(str(done[victim]) for victim in VICTIMS)
            seconds = time.monotonic() - start
            print(
                f"| {builds} | {done.total()} | {counts} | {starts} | {seconds:.0f} |", flush=True
            )
            builds += 1
        chaos.stop()
    print(
        f"\n{chaos.killed.total()} kills over {builds} builds ({dict(chaos.killed)}); all "
        f"{len(expected)} files of every dataset are byte-identical to the undisturbed one."
    )


class Chaos:
    """A Ray cluster and a driver, parts of which are killed at random."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.killed: Counter[str] = Counter()
        self.node = self._start_cluster()

    def _start_cluster(self) -> subprocess.Popen[bytes]:
        """A cluster of one node; the environment points drivers there."""
        address = f"127.0.0.1:{free_port()}"
        os.environ.update(RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
        return start_node(*head_words(address), "--num-cpus=2", log=self.folder / "ray.log")

    def build(self, name: str, kills: int) -> int:
        """Builds while killing until it succeeds; returns the number of starts."""
        starts, left = 0, kills
        path = self.folder / f"{name}.json"
        path.write_text(recipe_for(self.folder, name).model_dump_json())
        while True:
            starts += 1
            driver = start_driver(path, self.folder / f"{name}.log")
            while driver.poll() is None:
                time.sleep(self.rng.expovariate(1 / 0.5))
                if left and ray_actors("_PoolWorker", self.node) and driver.poll() is None:
                    left -= self._kill(driver)
            if driver.returncode == 0:
                return starts
            if not left and driver.returncode != -signal.SIGKILL:
                log = (self.folder / f"{name}.log").read_text()
                # Three workers lost in a row, at a task or at their start, end a build on purpose.
                assert "lost its worker" in log or "workers cannot start" in log, log

    def _kill(self, driver: subprocess.Popen[bytes]) -> int:
        victim = self.rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        if victim == "worker":
            workers = ray_actors("_PoolWorker", self.node)
            if not workers:
                return 0
            self.rng.choice(workers).kill()
        else:
            driver.kill()
            driver.wait()
        if victim == "machine":
            kill_tree(self.node)
            self.node = self._start_cluster()
        self.killed[victim] += 1
        return 1

    def stop(self) -> None:
        kill_tree(self.node)


def drive(path: str) -> None:
    """What the command does with a recipe, without Prefect."""
    recipe = DatasetRecipe.model_validate_json(Path(path).read_bytes())
    listing = list_sources(recipe.sources, exclude=recipe.output)
    if survey(recipe, listing).complete is not None:
        return
    with output_lock(recipe.output, BUILD) as lock, ray_cluster(cpus=1):
        plan = plan_dataset(recipe, listing=listing, map_chunks=map_chunks_on_cluster)
        shards_step(recipe, plan, lock)
        finish_step(plan, lock)


def start_driver(path: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.chaos_dataset", "drive", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def write_photos(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(PHOTOS):
        coarse = Image.fromarray(rng.integers(0, 256, (22, 30, 3), dtype=np.uint8))
        size = (360, 260) if index % 3 else (260, 360)
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=90)


def recipe_for(folder: Path, name: str) -> DatasetRecipe:
    settings = (
        *(
            f"sources=[{folder}/photos]",
            f"output={folder}/{name}",
            "workers=2",
            "samples_per_photo=8",
        ),
        *("samples_per_shard=8", "validation_fraction=0.2", "filters.max_megapixels=1"),
    )
    return dataset_recipe("demo", settings)


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        drive(sys.argv[2])
    else:
        main()
