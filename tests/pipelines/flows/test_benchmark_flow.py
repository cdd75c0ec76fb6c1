"""`flowmapsr benchmark` on a real Ray: kills, numbers of workers, what it writes and logs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from skimage.data import astronaut

from datagen.errors import FlowmapsrError
from datagen.io import storage
from pipelines.recipes.load import benchmark_recipe
from tests.pipelines.conftest import Ended
from tests.support.eventually import eventually
from tests.support.models import saved_model
from tests.support.s3 import FaultyS3
from tests.support.tiny import MODEL
from training.evaluation.benchmark import gathered, plan_benchmark, speed_tasks
from training.evaluation.report.page import report_page
from training.evaluation.results import write_results
from training.evaluation.speed import SpeedWorker, read_seconds
from training.settings.model import ModelSettings

PHOTOS, CHUNKS = 5, 9
MEASURE = """
import sys
from datagen.io.lock import BENCHMARK, output_lock
from pipelines.cluster.ray_session import ray_cluster
from pipelines.flows.benchmark import measure_step
from pipelines.recipes.load import benchmark_recipe
from training.evaluation.benchmark import plan_benchmark
recipe = benchmark_recipe("quality-curve", sys.argv[1:])
with output_lock(recipe.output, BENCHMARK) as lock, ray_cluster(cpus=1):
    plan = plan_benchmark(recipe)
    measure_step(plan, plan.pending(), lock)
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Settings of a benchmark of two tiny models."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(PHOTOS):
        pixels = astronaut()[40 * index : 40 * index + 60, 100:180]
        Image.fromarray(pixels).save(photos / f"{index}.png")
    settings = ModelSettings.model_validate(MODEL)
    for name, trained in (("a", False), ("b", True)):
        saved_model(tmp_path / name, settings, trained=trained)
    return [
        *(f"models=[{tmp_path}/a,other={tmp_path}/b]", f"photos={photos}", "scales=[2]"),
        *("steps=[1,2]", "photos_per_chunk=2", "curve.perception=[ssim_rgb]"),
    ]


def in_a_loop(words: list[str], output: Path | str) -> bytes:
    """`results.jsonl` as one process makes it, with another size of chunks."""
    recipe = benchmark_recipe("quality-curve", [*words, f"output={output}"])
    recipe = recipe.model_copy(update={"photos_per_chunk": 4})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plan = plan_benchmark(recipe)
    worker = plan.worker()
    for chunk in plan.pending():
        worker(chunk)
    torch.set_num_threads(threads)
    write_results(str(output), recipe, gathered(plan))
    return storage.read_bytes(f"{output}/results.jsonl")


def test_kills_and_workers_change_no_byte_and_nothing_is_measured_twice(
    words: list[str],
    tmp_path: Path,
    ray_cluster_address: str,
    prefect_server: str,
    mlflow_tables: Path,
    invoke: Callable[..., Ended],
) -> None:
    store = f"sqlite:///{shutil.copy(mlflow_tables, tmp_path / 'mlflow.db')}"
    env, out = {"RAY_ADDRESS": ray_cluster_address, "MLFLOW_TRACKING_URI": store}, tmp_path / "out"
    words.append(f"output={out}")
    killed = subprocess.Popen(
        [sys.executable, "-c", MEASURE, *words, "workers=2"], env={**os.environ, **env}
    )
    measured = out / "measured"
    eventually(lambda: killed.poll() is not None or any(measured.glob("*.json")), seconds=120)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {path: path.stat().st_mtime_ns for path in measured.glob("*.json")}
    assert 0 < len(before) < CHUNKS

    servers = {**env, "PREFECT_API_URL": prefect_server}
    ended = invoke("benchmark", "quality-curve", *words, "workers=1", "--json", env=servers)
    assert ended.code == 0, ended.err
    found = ended.json
    done = CHUNKS - found["measured"]  # a worker may have ended a chunk after its command
    assert not found["nothing_left"]
    assert found["chunks"] == CHUNKS and len(before) <= done <= len(before) + 2
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert not list(out.rglob(".*.tmp"))
    assert (out / "results.jsonl").read_bytes() == in_a_loop(words[:-1], tmp_path / "loop")

    assert "a: its LoRA scale is not swept, as it has none" in found["notes"]
    (first, *_) = found["differences"]
    assert (first["method"], first["against"], first["steps"]) == ("other", "a", 1)
    assert first["mean"] < 0 and first["verdict"] == "worse" and first["photos"] == PHOTOS
    page = (out / "report.html").read_text()
    assert "Against a<" in page and page.count("data-example>") >= 2
    summary = json.loads((out / "summary.json").read_text())
    assert summary["models"] == {"a": f"{tmp_path}/a", "other": f"{tmp_path}/b"}
    assert len((out / "timings.jsonl").read_text().splitlines()) == len(found["rows"]) * PHOTOS
    assert len(list((out / "lq/x2").glob("*.png"))) == PHOTOS

    run = MlflowClient(store).get_run(found["mlflow"].partition(" in ")[0])
    row = next(one for one in found["rows"] if (one["method"], one["steps"]) == ("other", 2))
    assert run.data.metrics["psnr_rgb_x2_nfe2/other"] == pytest.approx(row["psnr"])
    assert "| other | x2 | 2 |" in run.data.tags["mlflow.note.content"]

    made = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "report.html").unlink()
    # Neither Ray nor Prefect answers there: a command that needs one of them fails.
    dead = {
        "RAY_ADDRESS": "127.0.0.1:9",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "MLFLOW_TRACKING_URI": store,
    }
    again = invoke("benchmark", "quality-curve", *words, "workers=1", "--json", env=dead)
    assert again.code == 0, again.err
    assert again.json == {**found, "measured": 0, "nothing_left": True}
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == made
    MlflowClient(store).delete_run(run.info.run_id)
    told = invoke("benchmark", "quality-curve", *words, "workers=1", env=dead).out
    assert f"Nothing was left to do: all {CHUNKS} chunks of photos were measured before." in told
    (newer,) = MlflowClient(store).search_runs([run.info.experiment_id])
    assert f"Logged to MLflow: {newer.info.run_id} in " in told
    assert newer.data.metrics == run.data.metrics
    for kind in ("pictures-*.json", "[!p]*.json"):
        kept = next(measured.glob(kind))
        data = kept.read_bytes()
        kept.unlink()
        refused = invoke("benchmark", "quality-curve", *words, "workers=1", env=dead)
        assert refused.code == 1 and "RAY_ADDRESS=127.0.0.1:9" in refused.err
        kept.write_bytes(data)

    curve = json.loads((tmp_path / "b/quality_curve.json").read_text())
    assert curve["perception"] == {"metric": "ssim_rgb", "better": "higher"}
    assert [one["steps"] for one in curve["points"]] == [1, 2]
    large = ("-o", str(tmp_path / "large.png"), "--scale", "2", "--model", str(tmp_path / "b"))
    told = invoke("upscale", str(tmp_path / "photos/0.png"), *large, "--preset", "detailed")
    assert told.code == 0 and "preset detailed: --steps" in told.err


def test_models_are_timed_without_photos(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    timing = ("timing.sides=[32,64]", "timing.calls=3", "timing.warm_ups=1")
    recipe = benchmark_recipe("table1", [words[0], *timing, f"output={out}"])
    assert recipe.timing is not None
    plan = plan_benchmark(recipe)
    worker = SpeedWorker(plan.settings, recipe.timing)
    for task in speed_tasks(plan):
        assert read_seconds(task.path) is None
        worker(task)
    timings = tuple(row for task in speed_tasks(plan) for row in read_seconds(task.path) or ())
    assert [(one.method, one.side, one.steps) for one in timings] == [
        (name, side, steps) for name in ("a", "other") for side in (32, 64) for steps in (1, 2, 4)
    ]
    assert all(0 < one.low <= one.seconds <= one.high and one.calls == 3 for one in timings)
    found = gathered(plan)
    write_results(str(out), recipe, found, timings)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["timings"][0]["hardware"].startswith("a CPU") and summary["rows"] == []
    assert summary["settings"]["timing"]["calls"] == 3
    page = report_page("timed", recipe, found, [], timings=timings).decode()
    assert "Seconds of one picture" in page and "64x64" in page


def test_results_may_be_in_s3(words: list[str], tmp_path: Path, faulty_s3: FaultyS3) -> None:
    words = [*words, "metrics=[fid_patches]"]  # of which nothing is measured without weights
    assert in_a_loop(words, f"s3://{faulty_s3.bucket}/out") == in_a_loop(words, tmp_path / "out")
    recipe = benchmark_recipe("quality-curve", [*words, f"output=s3://{faulty_s3.bucket}/out"])
    recipe = recipe.model_copy(update={"photos_per_chunk": 4})
    assert plan_benchmark(recipe).pending() == []


def test_what_decides_a_number_decides_which_chunks_are_measured_again(
    words: list[str], tmp_path: Path
) -> None:
    def paths(*more: str) -> set[str]:
        recipe = benchmark_recipe("quality-curve", [*words, f"output={tmp_path}/out", *more])
        return {chunk.path for chunk in plan_benchmark(recipe).chunks}

    all_chunks = paths()
    assert len(all_chunks) == CHUNKS
    elsewhere = ("workers=2", "report=false", "curve=null", "metrics=[psnr_y,ssim_rgb]")
    assert paths(*elsewhere) == all_chunks
    assert paths("seed=1").isdisjoint(all_chunks)
    assert paths("precision=bf16").isdisjoint(all_chunks)
    assert len(paths("baselines=[{kind: lanczos}]") & all_chunks) == CHUNKS - 3
    Image.fromarray(astronaut()[:60, :80]).save(tmp_path / "photos/0.png")
    assert len(paths() & all_chunks) == CHUNKS - 3
    (tmp_path / "b/model.safetensors").write_bytes(b"other weights")
    assert len(paths() & all_chunks) == CHUNKS - 3 - 2


def test_missing_chunks_and_missing_metrics_are_named(words: list[str], tmp_path: Path) -> None:
    recipe = benchmark_recipe("quality-curve", [*words, f"output={tmp_path}/out"])
    plan = plan_benchmark(recipe)
    with pytest.raises(FlowmapsrError, match="is missing or damaged: the output must be a folder"):
        gathered(plan)
    (tmp_path / "photos/0.jpg").write_bytes((tmp_path / "photos/0.png").read_bytes())
    with pytest.raises(FlowmapsrError, match=r"0\.jpg and 0\.png would get one LQ picture"):
        plan_benchmark(recipe)
