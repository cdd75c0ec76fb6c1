"""Whole builds: the same bytes in any order and after any interruption, with no part missing."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen.build.builder import ShardBuilder
from datagen.build.finish import RejectionLimit, finish, pending_tasks
from datagen.build.in_process import build_in_process
from datagen.build.plan import plan_dataset
from datagen.build.survey import survey
from datagen.dataset.manifest import load_manifest, open_dataset
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import stored_latents
from datagen.errors import FlowmapsrError
from datagen.samples.codecs import Codec, codec_of
from datagen.samples.prepare import prepare
from datagen.settings import BucketSettings, DatasetRecipe, PixelBudget
from tests.support.eventually import eventually
from tests.support.files import digests
from tests.support.shards import sample_keys

RecipeMaker = Callable[..., DatasetRecipe]
SEVERAL_SHARDS_A_TASK: dict[str, Any] = {
    "buckets": {"budgets": [{"side": 64}, {"side": 48}], "step": 16},
    "augmentation": {"rotate90_probability": 0.5},
    "samples_per_shard": 6,
}


def test_a_build_has_all_samples_files_and_counts(recipe: RecipeMaker) -> None:
    manifest = build_in_process(recipe())
    root = Path(recipe().output)
    assert load_manifest(str(root)) == manifest == open_dataset(f"{root}/manifest.json").manifest
    assert manifest.num_samples == 18 == sum(manifest.stats.counts.scale)
    assert manifest.recipe_digest == recipe().digest()
    assert (manifest.codec.kind, manifest.codec.channels, manifest.codec.downsample) == (
        "dct8",
        192,
        8,
    )
    assert {record.split for record in manifest.shards} == {"train", "validation"}
    files = set(digests(root))
    stems = [record.path.removesuffix(".tar") for record in manifest.shards]
    shards = {stem + end for stem in stems for end in (".tar", ".json")}
    pictures = {"preview.png", "histograms.png"}
    top = {"manifest.json", "rejected.jsonl", "sources.jsonl"} | pictures
    assert files == shards | top | {f"manifests/{manifest.digest}.json"}
    assert {path.name for path in root.iterdir()} == top | {"shards", "manifests"}


def test_statistics_are_those_of_the_latents(recipe: RecipeMaker) -> None:
    manifest = build_in_process(recipe())
    root = recipe().output
    samples = [s for record in manifest.shards for s in read_shard(f"{root}/{record.path}")]
    latents = [stored_latents(sample)["hq"].reshape(192, -1) for sample in samples]
    values = np.concatenate(latents, axis=1).astype(np.float64)
    assert np.allclose(manifest.stats.latent.mean, values.mean(axis=1), atol=1e-9)
    assert np.allclose(manifest.stats.latent.std, values.std(axis=1), atol=1e-7)
    assert manifest.stats.latent.positions == values.shape[1]
    keys = [sample.key for sample in samples]
    assert len(set(keys)) == len(keys) == manifest.num_samples


def test_a_sample_is_in_the_shard_of_its_bucket_and_split(recipe: RecipeMaker) -> None:
    manifest = build_in_process(recipe(**SEVERAL_SHARDS_A_TASK))
    splits: dict[str, set[str]] = {}
    for shard in manifest.shards:
        for sample in read_shard(f"{recipe().output}/{shard.path}"):
            assert json.loads(sample.meta)["bucket"] == shard.bucket == shard.path.split("/")[1]
            splits.setdefault(sample.key.split("-")[0], set()).add(shard.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len({shard.bucket for shard in manifest.shards}) > 2
    assert len({shard.path[-10:] for shard in manifest.shards}) < manifest.num_shards


@pytest.mark.parametrize("settings", [{}, SEVERAL_SHARDS_A_TASK])
def test_bytes_do_not_depend_on_order_workers_threads_or_repetition(
    recipe: RecipeMaker, tmp_path: Path, settings: dict[str, Any]
) -> None:
    build_in_process(recipe(**settings))
    other = recipe(output=str(tmp_path / "other"), **settings)
    plan = plan_dataset(other)
    tasks = list(pending_tasks(plan))
    random.Random(1).shuffle(tasks)
    builders = [
        pickle.loads(pickle.dumps(ShardBuilder(other, threads=threads))) for threads in (1, 4)
    ]
    for index, task in enumerate([*tasks, *tasks[:2]]):
        builders[index % 2](task)
    finish(plan)
    assert digests(recipe().output) == digests(other.output)


def test_an_in_process_build_has_the_asked_device_and_threads(
    recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_in_process(recipe(), threads=1)
    devices: list[str] = []
    threads: list[int] = []

    def load(recipe: DatasetRecipe, device: str) -> Codec | None:
        devices.append(device)
        return codec_of(recipe, device)

    def counting(*args: Any, **kwargs: Any) -> Any:
        threads.append(kwargs["threads"])
        return prepare(*args, **kwargs)

    monkeypatch.setattr("datagen.build.builder.codec_of", load)
    monkeypatch.setattr("datagen.build.builder.prepare", counting)
    other = recipe(output=str(tmp_path / "other"))
    build_in_process(other, device="cpu:0", threads=2)
    assert devices == ["cpu:0"] and set(threads) == {2}
    assert digests(recipe().output) == digests(other.output)


def test_an_unfinished_build_continues_without_redoing_tasks(recipe: RecipeMaker) -> None:
    plan = plan_dataset(recipe())
    record = ShardBuilder(recipe())(pending_tasks(plan)[0])
    tar = Path(recipe().output, record.shards[0].path)
    before = tar.stat().st_mtime_ns
    (tar.parent / ".train-000000.tar.0123456789ab.tmp").write_bytes(b"left by a killed worker")
    with pytest.raises(FlowmapsrError, match=r"tasks are missing: tasks/000001\.json"):
        finish(plan)
    manifest = build_in_process(recipe())
    assert tar.stat().st_mtime_ns == before
    assert manifest.num_samples == 18
    root = Path(recipe().output)
    assert not list(root.rglob("*.tmp")) and not list(root.glob("*.lock"))
    assert not (root / "plan.json").exists() and not (root / "tasks").exists()


def test_a_damaged_shard_is_made_again(recipe: RecipeMaker) -> None:
    plan = plan_dataset(recipe())
    records = [ShardBuilder(recipe())(task) for task in plan.tasks]
    assert pending_tasks(plan) == []
    tar = Path(recipe().output, records[0].shards[0].path)
    tar.write_bytes(tar.read_bytes()[:-512])
    Path(recipe().output, records[2].shards[0].path).with_suffix(".json").unlink()
    assert pending_tasks(plan) == [plan.tasks[0], plan.tasks[2]]


def test_a_killed_build_ends_with_the_same_bytes(recipe: RecipeMaker, tmp_path: Path) -> None:
    build_in_process(recipe())
    other = recipe(output=str(tmp_path / "killed"))
    code = (
        "import sys; from datagen.build.in_process import build_in_process; "
        "from datagen.settings import DatasetRecipe; "
        "build_in_process(DatasetRecipe.model_validate_json(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, other.model_dump_json()])
    eventually(lambda: list(Path(other.output).glob("shards/*/*.tar")), process, poll=0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(Path(other.output).glob("shards/*/*.tar"))
    build_in_process(other)
    assert digests(recipe().output) == digests(other.output)


def test_a_build_killed_after_its_commit_is_cleaned_up(
    recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datagen.build.finish.clean_up", lambda *_: None)
    manifest = build_in_process(recipe())
    root = Path(recipe().output)
    assert (root / "plan.json").exists() and (root / "tasks").exists()
    monkeypatch.undo()
    assert build_in_process(recipe()) == manifest
    assert not (root / "plan.json").exists() and not (root / "tasks").exists()


def test_a_finished_dataset_is_recognized(recipe: RecipeMaker) -> None:
    assert survey(recipe()).complete is None
    manifest = build_in_process(recipe())
    before = digests(recipe().output)
    assert survey(recipe(workers=9)).complete == manifest == build_in_process(recipe())
    assert digests(recipe().output) == before


def test_another_recipe_is_refused_field_by_field(recipe: RecipeMaker) -> None:
    build_in_process(recipe())
    before = digests(recipe().output)
    with pytest.raises(FlowmapsrError) as error:
        build_in_process(recipe(seed=8, samples_per_photo=1))
    assert "seed was 7, is 8" in str(error.value)
    assert "samples_per_photo was 2, is 1" in str(error.value)
    assert digests(recipe().output) == before


def test_a_foreign_output_is_refused(recipe: RecipeMaker, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(FlowmapsrError, match="letter.txt"):
        build_in_process(recipe(output=str(folder)))
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    with pytest.raises(FlowmapsrError, match="is a file"):
        build_in_process(recipe(output=str(folder / "letter.txt")))


def test_bad_images_are_recorded_and_good_ones_used(
    recipe: RecipeMaker, photos: Path, encoded: Any, photo: Any
) -> None:
    whole = encoded(photo(70), ".jpg")
    transparent = np.dstack([photo(71), np.full((80, 96), 9, np.uint8)])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.png").write_bytes(b"no image")
    (photos / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (photos / "thin.png").write_bytes(encoded(photo(72, width=1, height=90)))
    (photos / "glass.png").write_bytes(encoded(transparent))
    manifest = build_in_process(recipe(max_rejected_fraction=0.5))
    lines = Path(recipe().output, "rejected.jsonl").read_text().splitlines()
    found = {Path(json.loads(line)["uri"]).name: json.loads(line)["reason"] for line in lines}
    assert found == {
        "empty.png": "empty file",
        "text.png": "not an image",
        "cut.jpg": "truncated",
        "thin.png": "too small",
        "glass.png": "transparent",
    }
    assert manifest.rejected.count == 5 and manifest.num_samples == 18
    assert manifest.rejected.by_reason == dict.fromkeys(sorted(found.values()), 1)


def test_too_many_bad_images_stop_the_build(
    recipe: RecipeMaker, photos: Path, encoded: Any, photo: Any
) -> None:
    (photos / "empty.png").write_bytes(b"")
    with pytest.raises(FlowmapsrError, match="max_rejected_fraction=0.05.* 1 empty file") as stop:
        build_in_process(recipe(max_rejected_fraction=0.05))
    listed = Path(recipe().output, "rejected.jsonl")
    assert stop.value.details == {"rejected": {"empty file": 1}, "listed_in": str(listed)}
    assert json.loads(listed.read_text())["reason"] == "empty file"
    (photos / "empty.png").unlink()
    for index in range(3):  # only decoding shows that these are truncated
        data = encoded(photo(80 + index), ".jpg")
        (photos / f"cut{index}.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(FlowmapsrError, match="Finished shards are kept"):
        build_in_process(recipe(max_rejected_fraction=0.1))
    assert list(Path(recipe().output).glob("shards/*/*.tar"))
    manifest = build_in_process(recipe(max_rejected_fraction=0.5))
    assert manifest.num_samples == 18 and manifest.rejected.by_reason == {"truncated": 3}


def test_photos_that_a_filter_leaves_out_are_not_called_unusable(recipe: RecipeMaker) -> None:
    manifest = build_in_process(recipe(filters={"min_side": 75}, max_rejected_fraction=0))
    assert manifest.rejected.by_reason == {"below min_side": 3} and manifest.num_samples == 12


def test_the_limit_holds_across_tasks(recipe: RecipeMaker) -> None:
    plan = plan_dataset(recipe(max_rejected_fraction=0.2))
    limit = RejectionLimit(plan)
    builder = ShardBuilder(recipe())
    records = [builder(task) for task in plan.tasks]
    for record in records:
        limit.check(record)
    rejecting = [
        record.model_copy(
            update={"photos": tuple(replace(p, reason="truncated") for p in record.photos)}
        )
        for record in records
    ]
    limit.check(rejecting[0])
    with pytest.raises(FlowmapsrError, match="2 of 9 photos"):
        for record in rejecting[1:]:
            limit.check(record)


def test_photos_that_fit_no_bucket_are_too_small(recipe: RecipeMaker) -> None:
    buckets = BucketSettings(budgets=(PixelBudget(side=4096),))
    with pytest.raises(FlowmapsrError, match="9 too small"):
        build_in_process(recipe(buckets=buckets, max_rejected_fraction=1))


def test_a_renamed_photo_gives_the_same_samples(recipe: RecipeMaker, photos: Path) -> None:
    build_in_process(recipe())
    before = sample_keys(recipe().output)
    for index, path in enumerate(sorted(photos.iterdir())):
        path.rename(photos / f"renamed{index * 7 % 9}.png")
    other = recipe(output=recipe().output + "-renamed")
    build_in_process(other)
    assert sample_keys(other.output) == before  # in the same order too
