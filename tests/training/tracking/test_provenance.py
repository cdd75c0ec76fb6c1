"""What a run records about its code, hosts and cost, and the secrets it hides."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from pydantic import ValidationError

from datagen.io.redaction import redacted
from tests.support.tiny import DISTILL, WARMUP, RunMaker
from training.monitoring.loss_guard import FIRST_STEPS, LossGuard
from training.monitoring.system_metrics import HostMetrics
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageProgress, WorkerGroup
from training.run_dir.starts import KILLED, Failure, append_line, end_reason, read_starts
from training.settings.recipe import TrainingRecipe
from training.tracking import provenance
from training.tracking import reporter as reporter_module
from training.tracking.events import Metrics, Params, Tags
from training.tracking.reporter import StageReporter
from training.tracking.summary.stage_facts import facts_of_stages
from training.tracking.summary.stage_table import stage_table

PACKAGE = Path(provenance.__file__).parent


def _git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _tags_of(folder: Path) -> dict[str, str]:
    """`code_tags` of a copy of the code in `folder`."""
    code = (
        "import json; from training.tracking.provenance import code_tags; "
        "print(json.dumps(code_tags()))"
    )
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    tags: dict[str, str] = json.loads(done.stdout)
    return tags


def test_the_commit_of_a_checkout_is_logged_and_whether_it_was_changed(tmp_path: Path) -> None:
    package = tmp_path / "training" / "tracking"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    for name in ("__init__.py", "provenance.py"):
        (package / name).write_bytes((PACKAGE / name).read_bytes())
    _git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("of another project")
    _git(tmp_path, "add", "other")
    _git(tmp_path, "commit", "-qm", "one")
    # The code is in another project's checkout but not a part of it, as in a virtual environment.
    assert "code.commit" not in _tags_of(tmp_path)
    _git(tmp_path, "add", "training")
    _git(tmp_path, "commit", "-qm", "two")
    tags = _tags_of(tmp_path)
    assert (
        tags["code.commit"]
        == tags["mlflow.source.git.commit"]
        == _git(tmp_path, "rev-parse", "HEAD")
    )
    assert tags["code.dirty"] == "false"
    assert tags["version.torch"] == version("torch") and "version.deepspeed" in tags
    with (package / "provenance.py").open("a") as file:
        file.write("# changed\n")
    assert _tags_of(tmp_path)["code.dirty"] == "true"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:p%40ss@host/db", "postgresql://***@host/db"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://host/x?X-Amz-Signature=abc&part=1", "https://host/x?X-Amz-Signature=***&part=1"),
        ("flowmapsr train demo api_key=abc seed=1", "flowmapsr train demo api_key=*** seed=1"),
        ("s3://bucket/photos@2x/a.png", "s3://bucket/photos@2x/a.png"),
        ("images_seen=5 tokens", "images_seen=5 tokens"),
    ],
)
def test_secrets_in_addresses_are_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert Tags(values={"a": text}).values["a"] == shown
    assert Params(values={"a": text}).values["a"] == shown


def test_a_recipe_with_a_secret_is_refused(run_recipe: RunMaker, tmp_path: Path) -> None:
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP]).model_dump(mode="json")
    secret = {**recipe, "manifest": "s3://key:hidden@bucket/set"}
    with pytest.raises(ValidationError, match=r"manifest: a recipe holds no secrets") as refused:
        type(run_recipe(tmp_path / "run", stages=[WARMUP])).model_validate(secret)
    assert "hidden" not in str(refused.value.errors()[0]["msg"])


WORKERS = WorkerGroup(hosts=("a", "a", "b"), devices=("H100", "H100", "H100"), on_gpus=True)


def _reporter(stage: StagePaths, workers: WorkerGroup = WORKERS) -> StageReporter:
    recipe = TrainingRecipe.model_validate(
        {"manifest": "/set", "output": str(stage.run), "stages": [WARMUP, DISTILL]}
    )
    return StageReporter(recipe, stage, workers, since=time.monotonic())


def test_hours_add_up_over_restarts_and_each_start_records_how_the_previous_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Mock()
    monkeypatch.setattr(reporter_module, "Tracker", lambda *_, **__: tracker)
    warmup, distill = (StagePaths(tmp_path, name) for name in ("warmup", "distill"))
    _reporter(warmup).started(0, skipped_checkpoints="")
    progress = StageProgress(
        stage="warmup", step=5, steps=10, images_per_second=1.0, headline="loss/total",
        headline_value=1.0, updated=0.0,
        checkpoint_step=4, checkpoint_time=0.0, worker_hours=7.5,
    )  # fmt: skip
    warmup.progress.write_text(progress.model_dump_json())
    second = _reporter(warmup)  # the first was killed
    second.started(4, skipped_checkpoints="")
    assert 7.5 <= second.worker_hours < 7.6
    append_line(tmp_path / "failures.jsonl", Failure(time=1e12, rank=0, died=False, error="lost"))
    for rank in (1, 2):
        append_line(
            tmp_path / "failures.jsonl",
            Failure(time=1e12, rank=rank, died=True, error="node b was lost"),
        )
    _reporter(warmup).started(4, skipped_checkpoints="")
    fourth = _reporter(warmup)
    with pytest.raises(ValueError, match="too small"), fourth.end_recorded():
        fourth.started(4, skipped_checkpoints="")
        raise ValueError("too small")
    warmup.starts.open("a").write('{"time": 1')  # cut off by a kill
    starts = read_starts(warmup)
    assert [start.step for start in starts] == [0, 4, 4, 4]
    assert [start.ended_before for start in starts] == [
        None,
        KILLED,
        "workers 1 on a, 2 on b: node b was lost",
        KILLED,
    ]
    few = WORKERS.model_copy(update={"hosts": ("a",)})
    _reporter(distill, few).started(0, skipped_checkpoints="")
    (tmp_path / "failures.jsonl").rename(tmp_path / "away")
    _reporter(distill).started(3, skipped_checkpoints="")
    (tmp_path / "away").rename(tmp_path / "failures.jsonl")
    grown = read_starts(distill)[1]
    assert grown.ended_before == f"{KILLED}, or ended for more workers"
    (tmp_path / "failures.jsonl").unlink()  # without a launcher that keeps one
    assert end_reason(warmup) == "ValueError: too small"
    tracker.close.assert_called_once_with("FAILED", reason="ValueError: too small")
    assert WORKERS.tags() == {"world_size": "3", "hosts": "a, b", "devices": "H100"}


def test_only_a_loss_far_above_its_median_has_diverged() -> None:
    guard = LossGuard(100.0)
    assert not any(guard.diverged(error) for error in [50.0, *[1.0] * FIRST_STEPS, 99.0])
    assert guard.diverged(101.0) and guard.usual == 1.0
    assert not guard.diverged(2.0)
    again = LossGuard(100.0)
    again.errors.extend(guard.errors)
    assert again.diverged(101.0) and again.errors == guard.errors
    assert not any(LossGuard(None).diverged(10.0**n) for n in range(200))


def test_the_first_steps_are_judged_by_the_error_before_them() -> None:
    guard = LossGuard(100.0)
    guard.begin([[float("nan")], []])
    assert not guard.diverged(0.0) and not LossGuard(100.0).diverged(1e9)
    guard = LossGuard(100.0)
    guard.begin([[1.0, 1e9], [1e-10]])
    assert guard.diverged(101.0)
    assert not any(guard.diverged(error) for error in [*[0.001] * (FIRST_STEPS - 1), 1.0])
    assert guard.diverged(1.0), "later the median alone counts"


def test_the_host_is_sampled_under_mlflows_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    names: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        names |= {f"system/{name}" for name in monitor.metrics}
    one_host = WorkerGroup(hosts=("a", "a"), devices=("CPU", "CPU"), on_gpus=False)
    host = HostMetrics(tmp_path, one_host, rank=0)
    assert host.gather().keys() == names
    assert HostMetrics(tmp_path, one_host, rank=1).gather() == {}  # rank 0 samples this host

    monkeypatch.setattr(HostMetrics, "_sample", Mock(side_effect=OSError("the driver failed")))
    assert host.gather() == host.gather() == {}
    assert caplog.text.count("the driver failed") == 1


def test_without_nvidias_library_only_the_gpus_metrics_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = HostMetrics(tmp_path, WorkerGroup(hosts=("a",), devices=("H100",), on_gpus=True), rank=0)
    without_gpus = host.gather().keys()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    missing = Mock(side_effect=ModuleNotFoundError("no NVML shared library"))
    monkeypatch.setattr(torch.cuda, "device_memory_used", missing)
    assert host.gather().keys() == host.gather().keys() == without_gpus
    assert caplog.text.count("no NVML shared library") == missing.call_count == 1


def test_the_gpus_are_sampled_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda gpu: 20e9 * (gpu + 1))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Mock(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 97)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda _: 650_000)
    workers = WorkerGroup(hosts=("a", "a"), devices=("H100", "H100"), on_gpus=True)
    sampled = HostMetrics(tmp_path, workers, rank=0).gather()
    assert {name: value for name, value in sampled.items() if "gpu_1" in name} == {
        "system/gpu_1_memory_usage_megabytes": 40e3,
        "system/gpu_1_memory_usage_percentage": 50.0,
        "system/gpu_1_utilization_percentage": 97,
        "system/gpu_1_power_usage_watts": 650.0,
    }


def test_stages_are_compared_in_one_table(run_recipe: RunMaker, tmp_path: Path) -> None:
    polish = {**WARMUP, "name": "polish"}
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP, polish])
    home = tmp_path / "run" / "stages" / "warmup"
    home.mkdir(parents=True)
    done = {"stage": "warmup", "steps": 60, "images_seen": 240, "model": "m"}
    digests = {"recipe_digest": "a", "dataset_digest": "b"}
    (home / "done.json").write_text(json.dumps({**done, **digests}))
    journal = [
        Metrics(step=step, time_ms=1, values=values).model_dump_json()
        for step, values in enumerate(
            [
                {"loss/total": 2.0, "perf/images_per_second": 10.0, "perf/memory_gb": 3.0},
                {"loss/total": 1.0, "perf/images_per_second": 20.0, "perf/memory_gb": 2.0},
            ]
        )
    ]
    (home / "tracking.jsonl").write_text("\n".join(journal) + '\n{"kind":"metrics","st')
    (tmp_path / "run" / "tracking.jsonl").write_text(
        '{"kind":"metrics","step":60,"time_ms":1,"values":{"eval/psnr_x4_nfe2":27.0}}\n'
    )
    table = stage_table(recipe, facts_of_stages(recipe))
    assert table.columns == ("stage", "warmup", "polish")
    found = {str(name): cells for name, *cells in table.rows}
    assert found["state"] == ["done", "not started"] and found["images"] == [240, None]
    assert found["loss/total"] == [1.0, None]
    assert found["images/s"] == [15.0, None] and found["memory GB"] == [3.0, None]
    assert found["restarts"] == [0, 0] and "MFU" not in found
    assert found["eval/psnr_x4_nfe2"] == [None, 27.0]
    written = json.loads(table.to_json())
    assert written["columns"] == list(table.columns) and len(written["data"]) == len(found)
    lines = table.to_markdown().splitlines()
    assert lines[:3] == ["| stage | warmup | polish |", "| --- | --- | --- |",
                         "| state | done | not started |"]  # fmt: skip
