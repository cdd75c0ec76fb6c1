"""Which of a stage's checkpoints are kept, skipped, removed and rejected, on a disk and S3."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from datagen.errors import FlowmapsrError
from datagen.io import s3_client, storage
from tests.support.s3 import FaultyS3
from training.checkpoints.reader import SavedState, open_checkpoint, read_commit
from training.checkpoints.records import CheckpointOrigin, Share, TrainerState
from training.checkpoints.store import Checkpoints
from training.checkpoints.tensor_files import key

ORIGIN = CheckpointOrigin(stage="warmup", recipe_digest="recipe", dataset_digest="data")
SIZE = 1000


@pytest.fixture(autouse=True, scope="module")
def _group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Values:
    """A minimal trained state: one tensor and a text."""

    def __init__(self, fill: float = 0.0) -> None:
        self.tensor = torch.full((SIZE,), fill)
        self.text = b""

    def snapshot(self) -> Share:
        halves = {
            key("master", "w", start): self.tensor[start : start + SIZE // 2].clone()
            for start in (0, SIZE // 2)
        }
        return Share({"model": halves}, {"note.txt": self.text})

    def restore(self, saved: SavedState) -> None:
        pieces = saved.network("model")
        self.tensor = pieces.read("master", "w", start=0, stop=SIZE, numel=SIZE)
        self.text = saved.text("note.txt")


def _state(step: int) -> TrainerState:
    return TrainerState(
        step=step,
        images_seen=4 * step,
        consumed={"32x32": 4 * step},
        errors=(0.5,),
        origin=ORIGIN,
        world_size=1,
        zero_stage=1,
    )


def _save(uri: str, *steps: int, keep: int = 9, keep_every_steps: int | None = None) -> Checkpoints:
    checkpoints = Checkpoints(uri, keep=keep, keep_every_steps=keep_every_steps)
    for step in steps:
        values = Values(float(step))
        values.text = str(step).encode()
        checkpoints.save(values, _state(step))
    checkpoints.finish()
    return checkpoints


def _resumed(uri: str) -> tuple[Values, TrainerState | None]:
    values = Values(-1.0)
    return values, Checkpoints(uri, keep=9).resume(values, ORIGIN)


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def _file(folder: Path, step: int, pattern: str) -> Path:
    (path,) = (folder / f"step-{step:06d}").glob(pattern)
    return path


def test_the_files_are_safetensors_and_json_named_with_their_digests(tmp_path: Path) -> None:
    _save(str(tmp_path), 5)
    tensors = safetensors.torch.load_file(_file(tmp_path, 5, "model-*.safetensors"))
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "master/w@0": [500],
        "master/w@500": [500],
    }
    assert all(bool((tensor == 5).all()) for tensor in tensors.values())
    commit = json.loads(_file(tmp_path, 5, "trainer_state.json").read_bytes())
    assert [file["part"] for file in commit["files"]] == ["model", "note.txt"]
    assert commit["state"]["consumed"] == {"32x32": 20}
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".safetensors", ".txt", ".json"}


def test_the_state_at_the_call_is_saved_and_restored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    values = Values()
    values.tensor = torch.arange(SIZE) / 7
    expected = values.tensor.clone()
    checkpoints.save(values, _state(3))
    values.tensor.zero_()
    checkpoints.finish()
    restored, state = _resumed(str(tmp_path))
    assert torch.equal(restored.tensor, expected)
    assert (
        state is not None
        and state.position.step == 3
        and dict(state.position.consumed)["32x32"] == 12
    )


def test_the_last_checkpoints_and_one_every_so_many_steps_are_kept(tmp_path: Path) -> None:
    assert _save(str(tmp_path), *range(1, 12), keep=2, keep_every_steps=4).newest is not None
    assert _steps(tmp_path) == [4, 8, 10, 11]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("pattern", "damage", "reported"),
    [
        ("model-*", _cut, "bytes instead of"),
        ("model-*", _flip, "was altered"),
        ("note-*", Path.unlink, "is missing"),
        ("trainer_state.json", _cut, "is truncated"),
        ("trainer_state.json", _flip, "is truncated|was altered"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    pattern: str,
    damage: Callable[[Path], None],
    reported: str,
) -> None:
    _save(str(tmp_path), 1, 2, 3)
    damaged = _file(tmp_path, 3, pattern)
    damage(damaged)
    with caplog.at_level(logging.WARNING):
        values, state = _resumed(str(tmp_path))
    assert state is not None and state.step == 2
    assert bool((values.tensor == 2).all()) and values.text == b"2"
    (warning,) = caplog.messages
    assert str(damaged) in warning and "resumes from step 2" in warning
    assert any(part in warning for part in reported.split("|"))
    # Otherwise it would become the newest again, and valid ones would be removed.
    assert _steps(tmp_path) == [1, 2]


def test_no_valid_checkpoint_is_an_error_that_removes_nothing(tmp_path: Path) -> None:
    _save(str(tmp_path), 1, 2)
    for step in (1, 2):
        _flip(_file(tmp_path, step, "model-*"))
    with pytest.raises(FlowmapsrError, match=r"no checkpoint .* is valid: .*start the stage over"):
        _resumed(str(tmp_path))
    assert _steps(tmp_path) == [1, 2]


def test_incomplete_checkpoints_of_a_dead_launch_are_removed(tmp_path: Path) -> None:
    _save(str(tmp_path), 1)
    _save(str(tmp_path), 2)
    _file(tmp_path, 2, "trainer_state.json").unlink()
    assert _resumed(str(tmp_path))[1] == _state(1)
    assert _steps(tmp_path) == [1]
    _file(tmp_path, 1, "trainer_state.json").unlink()
    assert _resumed(str(tmp_path))[1] is None
    assert _steps(tmp_path) == []


def test_files_of_two_launches_do_not_mix(tmp_path: Path) -> None:
    """A file of a dead launch is in the new one's folder: only the new one's counts."""
    _save(str(tmp_path), 4)
    dead = sorted(path.name for path in (tmp_path / "step-000004").iterdir())
    _save(str(tmp_path), 4)
    alive = sorted(path.name for path in (tmp_path / "step-000004").iterdir())
    assert set(dead) & set(alive) == {"trainer_state.json"}
    assert _resumed(str(tmp_path))[1] == _state(4)


@pytest.mark.parametrize("field", ["stage", "recipe_digest", "dataset_digest"])
def test_the_checkpoint_of_another_run_is_rejected(tmp_path: Path, field: str) -> None:
    _save(str(tmp_path), 1)
    other = ORIGIN.model_copy(update={field: "other"})
    with pytest.raises(FlowmapsrError, match=rf"another run \(different: {field}\).*`checkpoints`"):
        Checkpoints(str(tmp_path), keep=1).resume(Values(), other)


def test_a_network_of_another_size_is_rejected(tmp_path: Path) -> None:
    _save(str(tmp_path), 1)
    step = str(tmp_path / "step-000001")
    with open_checkpoint(step, read_commit(step)) as saved:
        pieces = saved.network("model")
        with pytest.raises(FlowmapsrError, match="holds 1000 values of master of w, which has 7"):
            pieces.read("master", "w", start=0, stop=7, numel=7)
        with pytest.raises(FlowmapsrError, match="holds none of master of v, which has 7 values"):
            pieces.read("master", "v", start=0, stop=7, numel=7)


@pytest.fixture
def full_disk() -> Iterator[Callable[[bool], None]]:
    """`full_disk(True)`: this process may write small files only, as when a disk is nearly full."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def switch(full: bool) -> None:
        limits = (3000, unlimited[1]) if full else unlimited
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield switch
    switch(False)


def test_a_full_disk_costs_a_checkpoint_but_not_the_training(
    tmp_path: Path, full_disk: Callable[[bool], None]
) -> None:
    checkpoints = _save(str(tmp_path), 1)
    full_disk(True)
    checkpoints.save(Values(2.0), _state(2))
    problem = checkpoints.drain()
    assert "step 2 could not be written" in problem and str(tmp_path / "step-000002") in problem
    assert _steps(tmp_path) == [1]
    full_disk(False)
    checkpoints.save(Values(3.0), _state(3))
    checkpoints.finish()
    assert _steps(tmp_path) == [1, 3]
    metrics = checkpoints.metrics()
    assert metrics["checkpoints/failed"] == 1 and metrics["checkpoints/newest_step"] == 3
    assert 0 < metrics["perf/checkpoint_seconds"] < 60


def test_a_full_disk_is_told_once(
    tmp_path: Path, full_disk: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    checkpoints = _save(str(tmp_path), 1)
    caplog.clear()
    full_disk(True)
    for step in (2, 13, 104):
        checkpoints.save(Values(2.0), _state(step))
    checkpoints.drain()
    (warning,) = caplog.messages
    assert "step 2 could not be written" in warning and "File too large" in warning
    full_disk(False)
    checkpoints.save(Values(3.0), _state(105))
    checkpoints.finish()
    assert caplog.messages[1:] == ["checkpoints can be written again: that of step 105 is"]
    assert checkpoints.failed == 3


def test_a_state_that_diverged_does_not_replace_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoints = _save(str(tmp_path), 1, keep=1)
    diverged = Values(2.0)
    diverged.tensor[700:703] = float("nan")
    checkpoints.save(diverged, _state(2))
    problem = checkpoints.drain()
    assert "step 2 could not be written" in problem
    assert "3 of the 500 values of master/w@500 are not finite in model: training has" in problem
    assert _steps(tmp_path) == [1]


def test_a_checkpoint_that_diverged_is_skipped_and_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that an earlier version has written."""
    monkeypatch.setattr("training.checkpoints.writer._check_finite", lambda *_: None)
    _save(str(tmp_path), 1)
    checkpoints = Checkpoints(str(tmp_path), keep=9)
    checkpoints.save(Values(float("inf")), _state(2))
    checkpoints.finish()
    file = _file(tmp_path, 2, "model-*")
    values, state = _resumed(str(tmp_path))
    assert state == _state(1) and bool((values.tensor == 1).all())
    (warning,) = caplog.messages
    assert f"{file}: 500 of the 500 values of master/w@0 are not finite" in warning


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(
    tmp_path: Path, full_disk: Callable[[bool], None]
) -> None:
    checkpoints = _save(str(tmp_path), 1)
    full_disk(True)
    checkpoints.save(Values(2.0), _state(2))
    with pytest.raises(FlowmapsrError, match=r"step 2 .*File too large.* resume from step 1"):
        checkpoints.finish()


def _uri(s3: FaultyS3) -> str:
    return f"s3://{s3.bucket}/run/warmup"


def _keys(s3: FaultyS3) -> set[str]:
    listed = s3.client.list_objects_v2(Bucket=s3.bucket).get("Contents", [])
    return {entry["Key"].split("/")[2] for entry in listed}


def test_busy_s3_is_retried_while_training_continues(faulty_s3: FaultyS3) -> None:
    uri = _uri(faulty_s3)
    checkpoints = _save(uri, 1, 2, keep=1)
    faulty_s3.fail("delay", "PUT", seconds=0.5)
    faulty_s3.fail("status", "PUT", times=3)
    faulty_s3.fail("reset", "PUT")
    checkpoints.save(Values(3.0), _state(3))
    # `save` returns before anything is written.
    assert storage.size(storage.join(uri, "step-000003", "trainer_state.json")) is None
    checkpoints.finish()
    assert all(fault.times == 0 for fault in faulty_s3.faults)
    assert _keys(faulty_s3) == {"step-000003"}
    faulty_s3.fail("status", "GET", times=3)
    faulty_s3.fail("cut_download", "GET", after=100)
    values, state = _resumed(uri)
    assert state == _state(3) and bool((values.tensor == 3).all())


def test_s3_that_is_down_costs_a_checkpoint_but_not_the_training(
    faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = _save(_uri(faulty_s3), 1)
    monkeypatch.setattr(s3_client, "PATIENCE", 0.3)
    faulty_s3.fail("status", "PUT", times=1000)
    checkpoints.save(Values(2.0), _state(2))
    assert "step 2 could not be written" in checkpoints.drain()
    faulty_s3.faults.clear()
    checkpoints.save(Values(3.0), _state(3))
    checkpoints.finish()
    assert _keys(faulty_s3) == {"step-000001", "step-000003"}


def test_a_checkpoint_on_s3_is_checked_and_skipped_like_any_other(
    faulty_s3: FaultyS3, caplog: pytest.LogCaptureFixture
) -> None:
    uri = _uri(faulty_s3)
    _save(uri, 1, 2)
    (name,) = storage.names(storage.join(uri, "step-000002"), "model-")
    damaged = storage.join(uri, "step-000002", name)
    data = bytearray(storage.read_bytes(damaged))
    data[-1] ^= 1
    storage.write_bytes(damaged, bytes(data))
    values, state = _resumed(uri)
    assert state == _state(1) and bool((values.tensor == 1).all())
    assert damaged in caplog.text
    assert _keys(faulty_s3) == {"step-000001"}


def test_a_checkpoint_is_not_skipped_because_its_storage_is_unreachable(
    faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(_uri(faulty_s3), 1)
    monkeypatch.setattr(s3_client, "PATIENCE", 0.3)
    faulty_s3.fail("status", "GET", times=1000)
    with pytest.raises(FlowmapsrError, match="s3://"):
        _resumed(_uri(faulty_s3))
    assert _keys(faulty_s3) == {"step-000001"}


def test_pieces_are_read_in_any_range_and_type(tmp_path: Path) -> None:
    from training.checkpoints.tensor_files import PieceFiles, safetensors_chunks

    whole = torch.randn(100)
    buffer = torch.randn(3, 4).bfloat16()
    cuts: list[dict[str, Tensor]] = [
        {key("master", "a", 0): whole[:37], key("buffer", "b", 0): buffer},
        {key("master", "a", 37): whole[37:38], key("step", "a", 0): torch.tensor([6.0])},
        {key("master", "a", 38): whole[38:]},
    ]
    files = {}
    for number, tensors in enumerate(cuts):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(b"".join(safetensors_chunks(tensors)))
        files[str(path)] = lambda path=path: path
    pieces = PieceFiles(files)
    for start, stop in ((0, 100), (10, 20), (36, 39), (37, 38), (99, 100)):
        values = pieces.read("master", "a", start=start, stop=stop, numel=100)
        assert torch.equal(values, whole[start:stop])
    assert torch.equal(pieces.whole("buffer", "b"), buffer)
    assert pieces.number("step", "a") == 6 and not pieces.has("step", "b")
