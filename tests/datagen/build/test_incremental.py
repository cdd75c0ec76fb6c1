"""A dataset grows with its folder: new photos are added, existing samples are not made again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen.build.builder import ShardBuilder
from datagen.build.finish import finish, pending_tasks
from datagen.build.in_process import build_in_process
from datagen.build.plan import make_plan, plan_dataset
from datagen.build.survey import survey
from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.manifest import load_manifest, open_dataset, open_state
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.scan import HeaderReader
from datagen.review.verify import verify_dataset
from datagen.samples.prepare import prepare
from datagen.settings import DatasetRecipe
from tests.support.s3 import FaultyS3
from tests.support.shards import sample_keys

RecipeMaker = Callable[..., DatasetRecipe]


@pytest.fixture
def add(photos: Path, encoded: Any, photo: Any) -> Callable[..., None]:
    """Adds photos to the folder."""

    def write(*seeds: int) -> None:
        for seed in seeds:
            (photos / f"new{seed}.png").write_bytes(encoded(photo(seed)))

    return write


def _keys(root: str) -> list[str]:
    keys = sample_keys(root)
    assert len(keys) == len(set(keys)) == load_manifest(root).num_samples
    return keys


def _shards(root: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(root).glob("shards/*/*")}


def test_new_photos_make_new_shards(recipe: RecipeMaker, add: Callable[..., None]) -> None:
    before = build_in_process(recipe())
    old = _shards(recipe().output)
    add(100, 101, 102)
    after = build_in_process(recipe())
    assert after.num_samples == before.num_samples + 6
    assert set(before.shards) < set(after.shards)
    now = _shards(recipe().output)
    assert {path: now[path] for path in old} == old
    assert sum(after.stats.counts.scale) == after.num_samples
    assert after.stats.latent.positions > before.stats.latent.positions
    assert verify_dataset(recipe().output) == []
    assert len(_keys(recipe().output)) == 24
    assert survey(recipe()).complete == after


def test_a_manifest_that_was_lost_is_made_again(
    recipe: RecipeMaker, add: Callable[..., None]
) -> None:
    build_in_process(recipe())
    add(100, 101)
    before = build_in_process(recipe())
    old = _shards(recipe().output)
    path, kept = (Path(recipe().output, name) for name in ("manifest.json", "manifests"))
    whole = path.read_bytes()
    path.unlink()
    build_in_process(recipe())
    assert path.read_bytes() == whole  # of its copy

    shutil.rmtree(kept)
    path.unlink()
    (issue,) = verify_dataset(recipe().output)
    assert issue.where == str(path) and "there is no manifest" in issue.what
    with pytest.raises(FlowmapsrError, match="not what the recipe draws"):
        build_in_process(recipe(seed=8))
    assert not path.exists()
    after = build_in_process(recipe())
    assert after.digest == before.digest and _shards(recipe().output) == old
    assert after.stats.counts == before.stats.counts
    assert np.allclose(after.stats.latent.std, before.stats.latent.std)
    assert verify_dataset(recipe().output) == []
    assert survey(recipe()).complete == after

    path.unlink()
    add(102)
    assert build_in_process(recipe()).num_samples == before.num_samples + 2
    path.unlink()
    shutil.rmtree(kept)
    shard = next(Path(recipe().output).glob("shards/*/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FlowmapsrError, match=shard.name):
        build_in_process(recipe())


def test_each_finished_state_is_kept_and_an_older_version_s_too(
    recipe: RecipeMaker, add: Callable[..., None]
) -> None:
    root, path = recipe().output, Path(recipe().output, "manifest.json")
    states = [build_in_process(recipe())]
    shutil.rmtree(Path(root, "manifests"))  # by a version that kept none
    files = [path.read_bytes()]
    for seed in (100, 101):
        add(seed)
        states.append(build_in_process(recipe()))
        files.append(path.read_bytes())
    for state, file in zip(states, files, strict=True):
        kept = Path(root, "manifests", f"{state.digest}.json")
        assert kept.read_bytes() == file
        assert open_state(root, state.digest) == open_dataset(str(kept)) == (state, root)
    assert open_state(root, "0" * 64) is None
    with pytest.raises(FlowmapsrError, match="never in that state; give one that is in"):
        open_dataset(f"{root}/manifests/{'0' * 64}.json")
    path.unlink()
    assert open_state(f"{root}/manifest.json", states[1].digest) is not None


def test_no_shard_of_a_kept_state_is_deleted_or_written_over(
    recipe: RecipeMaker, add: Callable[..., None]
) -> None:
    """Where the manifest was put back by hand; a training may read what came after it."""
    build_in_process(recipe())
    path = Path(recipe().output, "manifest.json")
    first = path.read_bytes()
    add(100)
    later = build_in_process(recipe())
    shards = _shards(recipe().output)
    path.write_bytes(first)
    add(101)
    after = build_in_process(recipe())
    now = _shards(recipe().output)
    assert {name: now[name] for name in shards} == shards and len(now) > len(shards)
    assert not set(after.shards) >= set(later.shards)
    assert verify_dataset(recipe().output) == []
    [gone] = set(later.shards) - set(after.shards)
    Path(recipe().output, gone.path).unlink()
    (issue,) = verify_dataset(recipe().output)
    assert gone.path in issue.where and "a training that began with" in issue.what


def test_a_manifest_lost_while_a_build_is_open_is_found_among_the_kept_ones(
    recipe: RecipeMaker, add: Callable[..., None]
) -> None:
    state = build_in_process(recipe())
    add(100)
    plan_dataset(recipe())
    Path(recipe().output, "manifest.json").unlink()
    with pytest.raises(FlowmapsrError, match=rf"manifests/{state.digest}\.json is a copy"):
        survey(recipe())


def test_a_second_folder_can_be_added(recipe: RecipeMaker, tmp_path: Path, encoded: Any) -> None:
    build_in_process(recipe())
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "photos" / "p0.png", other / "copy.png")
    (other / "q.png").write_bytes(encoded(np.full((70, 90, 3), 9, np.uint8)))
    after = build_in_process(recipe(sources=(str(tmp_path / "photos"), str(other))))
    assert after.num_samples == 20
    assert after.sources == (str(other), str(tmp_path / "photos"))
    assert after.rejected.by_reason == {"duplicate": 1}


def test_unchanged_photos_cost_one_listing(
    recipe: RecipeMaker, add: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_in_process(recipe())
    read_files: list[str] = []
    read = HeaderReader._read

    def recording(self: HeaderReader, file: Any) -> Any:
        read_files.append(Path(file.uri).name)
        return read(self, file)

    monkeypatch.setattr(HeaderReader, "_read", recording)
    build_in_process(recipe())
    assert read_files == []
    add(100)
    build_in_process(recipe())
    assert read_files == ["new100.png"]


def test_removed_photos_are_reported_and_their_samples_stay(
    recipe: RecipeMaker, photos: Path, add: Callable[..., None]
) -> None:
    before = build_in_process(recipe())
    (photos / "p3.png").unlink()
    found = survey(recipe())
    assert found.complete == before and found.missing == {str(photos / "p3.png")}
    add(100)
    assert plan_dataset(recipe()).num_samples == 2
    assert build_in_process(recipe()).num_samples == 20


def test_a_moved_or_touched_photo_is_not_made_again(recipe: RecipeMaker, photos: Path) -> None:
    before = build_in_process(recipe())
    (photos / "p3.png").rename(photos / "elsewhere.png")
    os.utime(photos / "p4.png", ns=(1, 1))
    plan = make_plan(survey(recipe()))
    assert (plan.tasks, plan.rejected) == ((), ())
    assert survey(recipe()).complete == before  # the moved photo is known now
    assert not survey(recipe()).missing
    (photos / "elsewhere.png").rename(photos / "p3.png")
    assert build_in_process(recipe()) == before


def test_a_changed_photo_is_a_new_one(
    recipe: RecipeMaker, photos: Path, encoded: Any, photo: Any
) -> None:
    before = build_in_process(recipe())
    old = (photos / "p3.png").read_bytes()
    (photos / "p3.png").write_bytes(encoded(photo(200)))
    assert survey(recipe()).changed == {str(photos / "p3.png")}
    after = build_in_process(recipe())
    assert after.num_samples == before.num_samples + 2
    (photos / "p3-again.png").write_bytes(old)  # its samples still exist
    assert build_in_process(recipe()) == after
    assert len(_keys(recipe().output)) == 20


def test_a_new_copy_of_an_old_photo_is_a_duplicate(recipe: RecipeMaker, photos: Path) -> None:
    build_in_process(recipe())
    shutil.copy(photos / "p3.png", photos / "copy.png")
    after = build_in_process(recipe())
    assert (after.num_samples, after.rejected.by_reason) == (18, {"duplicate": 1})
    assert survey(recipe()).complete == after


def test_a_repaired_photo_is_added(
    recipe: RecipeMaker, photos: Path, encoded: Any, photo: Any
) -> None:
    (photos / "new.png").write_bytes(b"")
    first = build_in_process(recipe(max_rejected_fraction=0.2))
    assert first.rejected.by_reason == {"empty file": 1}
    (photos / "new.png").write_bytes(encoded(photo(100)))
    second = build_in_process(recipe())
    assert (second.num_samples, second.rejected.count) == (20, 0)


def test_the_limit_counts_the_whole_dataset(recipe: RecipeMaker, photos: Path) -> None:
    build_in_process(recipe())
    (photos / "bad.png").write_bytes(b"")
    with pytest.raises(FlowmapsrError, match="1 of 10 photos"):
        build_in_process(recipe(max_rejected_fraction=0.05))
    after = build_in_process(recipe(max_rejected_fraction=0.1))
    assert (after.num_samples, after.rejected.count) == (18, 1)


def test_photos_that_arrive_during_a_build_are_added(
    recipe: RecipeMaker, photos: Path, add: Callable[..., None]
) -> None:
    plan = plan_dataset(recipe())
    ShardBuilder(recipe())(plan.tasks[0])
    add(100)
    shutil.copy(photos / "p8.png", photos / "copy.png")  # its original is not made yet
    again = plan_dataset(recipe())
    assert again.tasks[: len(plan.tasks)] == plan.tasks
    assert [photo.reason for photo in again.rejected] == ["duplicate"]
    assert build_in_process(recipe()).num_samples == 20
    assert len(_keys(recipe().output)) == 20


def test_photos_that_change_or_disappear_during_a_build_are_refused(
    recipe: RecipeMaker, photos: Path, encoded: Any, photo: Any
) -> None:
    plan = plan_dataset(recipe(samples_per_shard=4))
    made = ShardBuilder(recipe())(plan.tasks[0])
    dropped = plan.tasks[2]
    uris = [photo.file.uri for photo in dropped.photos]
    assert len(uris) == 2
    Path(uris[0]).unlink()
    with pytest.raises(FlowmapsrError, match="disappeared after planning; run the same"):
        list(prepare(dropped, recipe(), threads=1))
    Path(uris[0]).write_bytes(encoded(photo(300, width=100)))
    with pytest.raises(FlowmapsrError, match="changed after planning"):
        list(prepare(dropped, recipe(), threads=1))
    Path(uris[1]).unlink()
    again = plan_dataset(recipe(samples_per_shard=4))
    assert plan.tasks[0] in again.tasks and dropped not in again.tasks
    assert plan.tasks[0] not in pending_tasks(again) and made.index == 0
    for task in pending_tasks(again):
        ShardBuilder(recipe())(task)
    assert finish(again).num_samples == 16
    assert verify_dataset(recipe().output) == []


def test_a_new_photo_that_is_rejected_is_recorded(recipe: RecipeMaker, photos: Path) -> None:
    before = build_in_process(recipe(max_rejected_fraction=0.5))
    (photos / "bad.png").write_bytes(b"")
    after = build_in_process(recipe(max_rejected_fraction=0.5))
    assert after.shards == before.shards and after.rejected.by_reason == {"empty file": 1}
    (photos / "bad.png").unlink()
    assert survey(recipe()).complete == after


def test_damage_to_the_list_of_known_photos_is_detected(recipe: RecipeMaker) -> None:
    build_in_process(recipe())
    path = Path(recipe().output, "sources.jsonl")
    whole = path.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FlowmapsrError, match="damaged or cut off"):
            KnownPhotos.read(recipe().output)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FlowmapsrError, match="damaged or cut off"):
        survey(recipe())
    path.write_bytes(whole)
    lines = KnownPhotos.read(recipe().output).lines
    assert {line.sha256 for line in lines} == {
        hashlib.sha256(Path(line.uri).read_bytes()).hexdigest() for line in lines
    }


@pytest.mark.parametrize("refused_to", ["planning", "hashing", "a worker"])
def test_an_object_that_may_not_be_read_is_left_out_and_read_once_it_may(
    recipe: RecipeMaker, photos: Path, faulty_s3: FaultyS3, refused_to: str
) -> None:
    """Its ETag stays the same."""
    folder = f"s3://{faulty_s3.bucket}/photos"
    for path in photos.iterdir():
        storage.write_bytes(f"{folder}/{path.name}", path.read_bytes())
    if refused_to == "hashing":
        storage.write_bytes(f"{folder}/p9.png", (photos / "p3.png").read_bytes())
    asked = recipe(sources=(folder,), max_rejected_fraction=0.2)
    closed = {"times": 10**6, "status": 403, "code": "AccessDenied", "path": "/photos/p3.png"}
    faulty_s3.fail("delay", "GET", times=refused_to != "planning", path="/photos/p3.png")
    faulty_s3.fail("status", "GET", **closed)
    manifest = build_in_process(asked)
    assert manifest.num_samples == (18 if refused_to == "hashing" else 16)
    reason = "missing" if refused_to == "hashing" else "no permission"
    assert manifest.rejected.by_reason == {reason: 1}
    assert build_in_process(asked) == manifest, "complete, as long as it may not be read"
    faulty_s3.faults.clear()
    later = build_in_process(asked)
    assert later.num_samples == 18
    assert later.rejected.by_reason == ({"duplicate": 1} if refused_to == "hashing" else {})


def test_a_folder_that_may_not_be_listed_or_read_stops_the_build(
    recipe: RecipeMaker, photos: Path, faulty_s3: FaultyS3
) -> None:
    folder = f"s3://{faulty_s3.bucket}/photos"
    for path in photos.iterdir():
        storage.write_bytes(f"{folder}/{path.name}", path.read_bytes())
    faulty_s3.fail("status", "GET", times=10**6, status=403, code="AccessDenied", path=".png")
    with pytest.raises(FlowmapsrError, match="9 of 9 photos cannot be used.*9 no permission"):
        build_in_process(recipe(sources=(folder,)))
    faulty_s3.fail("status", "GET", times=10**6, status=403, code="AccessDenied")
    with pytest.raises(FlowmapsrError, match="may not list there"):
        build_in_process(recipe(sources=(folder,)))
