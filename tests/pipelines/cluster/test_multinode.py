"""Training on three machines with a network between them, one of which is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.pipelines.conftest import write_training
from tests.support.eventually import eventually
from tests.support.launch import train
from tests.support.network_nodes import Node, missing, network
from tests.support.ray_processes import READY, START
from tests.support.tiny import WARMUP, RunMaker, weights
from training.run_dir.records import StageRecord
from training.run_dir.starts import Start

REASON = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.multinode,
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.timeout(600),
]
TOKEN = "a-token-of-this-test-alone-0123456789"
PORT = 6379


def _start_ray(node: Node, *words: str, env: dict[str, str], log: Path) -> None:
    sizes = ("--object-store-memory=100000000", f"--node-ip-address={node.address}")
    node.start(*START, *sizes, *words, env=env, log=log)
    eventually(lambda: READY in log.read_text(), seconds=60)


def _newest(home: Path) -> int:
    """Step of the newest checkpoint; 0 when there is none."""
    commits = home.glob("checkpoints/step-??????/trainer_state.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in commits), default=0)


def test_a_lost_machine_costs_a_restart_and_no_sample(run_recipe: RunMaker, tmp_path: Path) -> None:
    stage = {**WARMUP, "steps": 160, "zero_stage": 2, "checkpoint_every_steps": 10}
    undisturbed = run_recipe(tmp_path / "undisturbed" / "run", stages=[stage])
    train(undisturbed, tmp_path / "undisturbed")

    recipe = undisturbed.model_dump(mode="json", exclude={"output", "workers"})
    write_training(tmp_path / "recipe.json", recipe)
    run = tmp_path / "run"
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    with network(3) as (head, first, second):
        words = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        _start_ray(head, *words, env=env, log=tmp_path / "head.log")
        for node in (first, second):
            words = (f"--address={head.address}:{PORT}", "--num-cpus=1")
            _start_ray(node, *words, env=env, log=tmp_path / f"{node.address}.log")
        command = head.start(
            *(sys.executable, "-m", "pipelines.cli", "train", str(tmp_path / "recipe.json")),
            *("--cluster", f"output={run}", "workers={min: 1, max: 2}", "--json"),
            env={**env, "RAY_ADDRESS": f"{head.address}:{PORT}"},
            log=tmp_path / "train.log",
        )
        home = run / "stages" / "warmup"
        eventually(lambda: command.poll() is not None or _newest(home) >= 20)
        assert command.poll() is None, (tmp_path / "train.log").read_text()
        second.kill()
        command.wait(timeout=300)
    said = (tmp_path / "train.log").read_text()
    assert command.returncode == 0, said
    assert "Traceback" not in said
    record = StageRecord.model_validate_json((home / "done.json").read_bytes())
    assert (record.steps, record.images_seen) == (160, 640)
    lines = (home / "starts.jsonl").read_text().splitlines()
    first_start, second_start = (Start.model_validate_json(line) for line in lines)
    assert [len(one.workers.hosts) for one in (first_start, second_start)] == [2, 1]
    assert second_start.step >= 20 and second_start.step % 10 == 0
    ours = weights(undisturbed.model_copy(update={"output": str(run)}), "warmup")
    theirs = weights(undisturbed, "warmup")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-4)
