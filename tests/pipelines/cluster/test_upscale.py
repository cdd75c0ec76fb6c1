"""`upscale --cluster` on a real Ray: bytes, kills, bad files, and nodes that see other files."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from datagen.errors import FlowmapsrError
from datagen.photos.source_file import SourceFile
from pipelines.cluster import actor_pool
from pipelines.cluster.shared_model import SharedModel
from pipelines.cluster.upscale import (
    Elsewhere,
    PhotoTask,
    PhotoWorker,
    _in_rounds,
    plan_photo_workers,
    require_seen,
    upscale_on_cluster,
)
from pipelines.cluster.workers import WorkerPlan, WorkerRequest
from tests.pipelines.conftest import Ended
from tests.support.eventually import eventually
from tests.support.models import saved_model
from tests.support.tiny import MODEL
from training.inference import enlarger
from training.inference.batch import Outcome, upscale_all
from training.inference.files import UpscaleSettings
from training.inference.jobs import Job, plan_jobs
from training.inference.made import sha256
from training.inference.under_way import UnderWay
from training.inference.upscaler import Upscaler
from training.restorer_protocol import LoadOptions
from training.settings.model import ModelSettings

Invoke = Callable[..., Ended]
SAME = LoadOptions(same_everywhere=True)
PHOTOS = 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "model", ModelSettings.model_validate(MODEL), trained=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos, of which the second has more than a tile in it, and a file that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(PHOTOS):
        width = 80 if index == 1 else 30
        pixels = astronaut()[10 * index : 10 * index + 40, 150 : 150 + width]
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "bad.jpg").write_bytes(b"no picture")
    return folder


def words(folder: Path, output: str, model: Path) -> list[str]:
    options = ["--scale", "4", "--model", str(model), "--tile", "256", "--max-memory", "100MB"]
    return ["upscale", str(folder), "-o", output, *options, "--cluster", "--json"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()) for path in folder.glob("*.png")}


def test_any_number_of_workers_and_a_kill_give_the_same_bytes(
    folder: Path,
    model: Path,
    tmp_path: Path,
    ray_cluster_address: str,
    start: Callable[..., subprocess.Popen[str]],
    invoke: Invoke,
) -> None:
    env = {"RAY_ADDRESS": ray_cluster_address}
    killed = start(*words(folder, "killed", model), env={**os.environ, **env})
    out = tmp_path / "killed"
    eventually(lambda: killed.poll() is not None or any(out.glob("*.png")), seconds=120)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = len(list((out / ".flowmapsr").glob("*.json")))

    ended = invoke(*words(folder, "killed", model), env=env)
    assert ended.code == 1  # of the file that is none
    assert ended.json["failed"] == [{"file": str(folder / "bad.jpg"), "reason": "not an image"}]
    assert ended.json["unchanged"] + len(ended.json["written"]) == PHOTOS and before > 0
    assert ended.json["written"] == sorted(ended.json["written"])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = Upscaler.from_pretrained(model, tile=256, same_everywhere=True)
    jobs = plan_jobs(str(folder), str(tmp_path / "alone"), overwrite=False, skip_existing=False)
    upscale_all(jobs.jobs, alone, UpscaleSettings(scale=4))
    torch.set_num_threads(threads)
    assert digests(out) == digests(tmp_path / "alone") and len(digests(out)) == PHOTOS
    assert Image.open(out / "1.png").size == (320, 160)
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.usefixtures("ray_cluster_address")
def test_workers_tell_the_shares_of_their_photos(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_pool, "TELL_SECONDS", 0.01)
    jobs = plan_jobs(str(folder), str(tmp_path / "out"), overwrite=False, skip_existing=False).jobs
    told: list[UnderWay] = []
    report = upscale_on_cluster(
        *(jobs, model, LoadOptions(tile=256, max_memory=100_000_000)),
        UpscaleSettings(scale=4, steps=20),
        digest="",
        workers=None,
        on_done=lambda *_: None,
        on_progress=told.append,
    )
    assert len(report.written) == PHOTOS
    uris = {job.source.uri for job in jobs}
    assert all(len(at.photos) <= 2 and set(at.photos) < uris for at in told)
    assert len({at.share for at in told}) > PHOTOS and all(0 <= at.share <= 1 for at in told)
    done = [at.done for at in told]
    assert done == sorted(done) and done[-1] == 1
    assert told[-1].speed > 0


def test_the_address_of_a_cluster_is_needed(invoke: Invoke, folder: Path, model: Path) -> None:
    ended = invoke(*words(folder, "out", model))
    assert ended.code == 1 and "RAY_ADDRESS is not set" in ended.err
    ended = invoke("upscale", str(folder), "-o", "out", "--workers", "2")
    assert ended.code == 1 and "--workers is for --cluster" in ended.err


@pytest.fixture
def worker(model: Path, tmp_path: Path) -> PhotoWorker:
    """As on a node that sees all that the command does."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sign").touch()
    sign = str(tmp_path / "out" / "sign")
    return PhotoWorker(SharedModel.at(model, LoadOptions()), sign, UpscaleSettings(scale=2), "")


def task_of(folder: Path, out: Path) -> PhotoTask:
    jobs = plan_jobs(str(folder), str(out), overwrite=False, skip_existing=False).jobs
    return PhotoTask(jobs[0], jobs[0].source.bytes)


def test_a_node_that_sees_another_photo_is_named(
    worker: PhotoWorker, folder: Path, tmp_path: Path
) -> None:
    task, photo = task_of(folder, tmp_path / "out"), folder / "0.png"
    assert worker(task).outcome.megapixels > 0
    content = photo.read_bytes()
    for there in (None, content + b"\0"):  # as that node sees it
        photo.unlink()
        if there is not None:
            photo.write_bytes(there)
        record = worker(task)
        assert record.outcome.failed
        require_seen(task, record)  # it is so here too
        photo.write_bytes(content)
        with pytest.raises(FlowmapsrError, match=r"node \S+ does not see .*0\.png .*s3://"):
            require_seen(task, record)


def test_a_node_that_sees_another_output_or_model_is_named(
    worker: PhotoWorker, folder: Path, tmp_path: Path
) -> None:
    task = task_of(folder, tmp_path / "out")
    with pytest.raises(FlowmapsrError, match=rf"node \S+ does not see .* {tmp_path}/elsewhere:"):
        replace(worker, sign=str(tmp_path / "elsewhere" / "sign"))(task)
    seen = worker.model
    for model in (replace(seen, folder="/nowhere"), replace(seen, digest="of another")):
        with pytest.raises(FlowmapsrError, match=r"node \S+ does not see the model .*or sees an"):
            replace(worker, model=model)(task)


def test_large_photos_come_last_and_share_all_workers(worker: PhotoWorker) -> None:
    """Of three large ones and two workers, two keep them busy, and the third one's tiles do."""
    jobs = [Job(SourceFile(str(n), n, ""), f"{n}.png") for n in range(4)]
    tasks, rounds = [PhotoTask(job, 0) for job in jobs], list[tuple[list[str], int, int]]()

    def run(worker: PhotoWorker, tasks: Sequence[PhotoTask], count: int) -> list[Elsewhere]:
        helpers = worker.helpers.count if worker.helpers else 0
        rounds.append(([task.path for task in tasks], count, helpers))
        off = [worker.put_off_large and task.path != "2" for task in tasks]
        return [Elsewhere(Outcome(put_off=one)) for one in off]

    records = _in_rounds(run, worker, tasks, WorkerPlan(2, WorkerRequest(1)))
    assert rounds == [(["0", "1", "2", "3"], 2, 0), (["0", "1"], 2, 0), (["3"], 1, 1)]
    assert list(records) == ["0", "1", "2", "3"]
    assert not any(record.outcome.put_off for record in records.values())
    rounds.clear()
    _in_rounds(run, worker, tasks, WorkerPlan(1, WorkerRequest(1)))
    assert rounds == [(["0", "1", "2", "3"], 1, 0)]


def test_what_is_large_is_put_off_if_that_is_asked_for(
    worker: PhotoWorker, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarger, "LARGEST_WHOLE", 100)
    large = replace(worker, model=SharedModel.at(Path(worker.model.folder), SAME))
    task = task_of(folder, tmp_path / "out")
    assert replace(large, put_off_large=True)(task).outcome == Outcome(put_off=True)
    assert not (tmp_path / "out" / "0.png").exists()
    assert large(task).outcome.megapixels > 0


def test_workers_get_a_gpu_each_where_there_are_any() -> None:
    cpus = [{"CPU": 8.0, "memory": 16e9}, {"CPU": 4.0, "memory": 64e9}]
    assert plan_photo_workers(cpus, 0, 2_000_000_000, None).count == 8 + 4
    assert plan_photo_workers(cpus, 500_000_000, None, None).count == 4 + 4
    gpus = [*cpus, {"CPU": 8.0, "GPU": 2.0, "memory": 64e9}]
    plan = plan_photo_workers(gpus, 500_000_000, 1_000_000, 5)
    assert (plan.count, plan.device, plan.each.memory) == (2, "cuda", 4_000_000_000)
    with pytest.raises(FlowmapsrError, match="no node of the Ray cluster has that much"):
        plan_photo_workers([{"CPU": 8.0, "memory": 1e9}], 0, None, None)
