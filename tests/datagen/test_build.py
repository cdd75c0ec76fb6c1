"""Whole builds: the same bytes in any order and after any interruption, and no part missing."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen import build
from datagen.build import RejectionLimit, ShardBuilder, build_dataset, completed, finish
from datagen.errors import FlowmapsrError
from datagen.manifest import load_manifest, to_json
from datagen.plan import make_plan, pending_tasks, plan_dataset
from datagen.settings import BucketSettings, DatasetRecipe, PixelBudget
from datagen.shards import Latents, read_shard

RecipeMaker = Callable[..., DatasetRecipe]


def _hashes(root: str | Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def test_a_whole_dataset(recipe: RecipeMaker) -> None:
    manifest = build_dataset(recipe())
    root = Path(recipe().output)
    assert load_manifest(str(root)) == manifest == load_manifest(str(root / "manifest.json"))
    assert manifest.digest == hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()
    assert manifest.num_samples == 18 == sum(manifest.stats.scale.counts)
    assert manifest.recipe_digest == recipe().digest()
    assert (manifest.codec.kind, manifest.codec.channels, manifest.codec.downsample) == (
        "dct8",
        192,
        8,
    )
    assert {record.split for record in manifest.shards} == {"train", "validation"}
    files = set(_hashes(root))
    stems = [record.path.removesuffix(".tar") for record in manifest.shards]
    ends = (".tar", ".json", ".summary.json")
    shards = {stem + end for stem in stems for end in ends}
    top = {"manifest.json", "preview.png", "rejected.jsonl", "sources.jsonl"}
    assert files == shards | top


def test_statistics_are_those_of_the_latents(recipe: RecipeMaker) -> None:
    manifest = build_dataset(recipe())
    root = recipe().output
    samples = [s for record in manifest.shards for s in read_shard(f"{root}/{record.path}")]
    latents = [Latents.from_bytes(sample.latents).hq.reshape(192, -1) for sample in samples]
    values = np.concatenate(latents, axis=1).astype(np.float64)
    assert np.allclose(manifest.stats.latent.mean, values.mean(axis=1), atol=1e-9)
    assert np.allclose(manifest.stats.latent.std, values.std(axis=1), atol=1e-7)
    keys = [sample.key for sample in samples]
    assert len(set(keys)) == len(keys) == manifest.num_samples


def test_all_variants_of_a_photo_are_in_one_split(recipe: RecipeMaker) -> None:
    splits: dict[str, set[str]] = {}
    for task in make_plan(recipe()).tasks:
        for sample in task.samples:
            splits.setdefault(sample.source.sha256, set()).add(task.split)
    assert all(len(found) == 1 for found in splits.values())


def test_bytes_do_not_depend_on_order_workers_or_repetition(
    recipe: RecipeMaker, tmp_path: Path
) -> None:
    build_dataset(recipe())
    other = recipe(output=str(tmp_path / "other"), workers=5)
    plan = plan_dataset(other)
    tasks = list(plan.tasks)
    random.Random(3).shuffle(tasks)
    builders = [pickle.loads(pickle.dumps(ShardBuilder(other))) for _ in range(2)]
    for index, task in enumerate([*tasks, *tasks[:2]]):
        builders[index % 2](task)
    finish(plan)
    assert _hashes(recipe().output) == _hashes(other.output)


def test_an_unfinished_build_goes_on_without_redoing_shards(recipe: RecipeMaker) -> None:
    plan = plan_dataset(recipe())
    first = pending_tasks(plan)[0]
    ShardBuilder(recipe())(first)
    tar = Path(recipe().output, first.path)
    before = tar.stat().st_mtime_ns
    (tar.parent / ".train-000000.tar.abc.tmp").write_bytes(b"left by a killed worker")
    with pytest.raises(FlowmapsrError, match="shards are missing.*train-"):
        finish(plan)
    manifest = build_dataset(recipe())
    assert tar.stat().st_mtime_ns == before
    assert manifest.num_samples == 18
    assert not list(Path(recipe().output).rglob("*.tmp"))
    assert not Path(recipe().output, "plan.json").exists()


def test_a_damaged_shard_is_made_again(recipe: RecipeMaker) -> None:
    plan = plan_dataset(recipe())
    for task in plan.tasks:
        ShardBuilder(recipe())(task)
    tar = Path(recipe().output, plan.tasks[0].path)
    tar.write_bytes(tar.read_bytes()[:-512])
    assert pending_tasks(plan) == [plan.tasks[0]]


def test_a_killed_build_ends_with_the_same_bytes(recipe: RecipeMaker, tmp_path: Path) -> None:
    build_dataset(recipe())
    other = recipe(output=str(tmp_path / "killed"))
    code = (
        "import sys; from datagen.build import build_dataset; from datagen.settings import "
        "DatasetRecipe; build_dataset(DatasetRecipe.model_validate_json(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, other.model_dump_json()])
    deadline = time.monotonic() + 60
    while not list(Path(other.output).glob("shards/*/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(Path(other.output).glob("shards/*/*.tar"))
    build_dataset(other)
    assert _hashes(recipe().output) == _hashes(other.output)


def test_a_finished_dataset_is_recognised(
    recipe: RecipeMaker, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(recipe()) is None
    manifest = build_dataset(recipe())
    monkeypatch.setattr(build, "ShardBuilder", None)
    assert completed(recipe(workers=9)) == manifest == build_dataset(recipe())
    (photos / "p0.png").unlink()
    assert completed(recipe()) is None


def test_another_recipe_is_refused_field_by_field(recipe: RecipeMaker) -> None:
    build_dataset(recipe())
    before = _hashes(recipe().output)
    with pytest.raises(FlowmapsrError) as error:
        build_dataset(recipe(seed=8, variants=1))
    assert "seed: 7 → 8" in str(error.value) and "variants: 2 → 1" in str(error.value)
    assert _hashes(recipe().output) == before


def test_other_photos_are_refused(
    recipe: RecipeMaker, photos: Path, encoded: Any, photo: Any
) -> None:
    plan_dataset(recipe())
    (photos / "new.png").write_bytes(encoded(photo(99)))
    with pytest.raises(FlowmapsrError, match="1 new, 0 gone"):
        plan_dataset(recipe())


def test_a_foreign_output_is_refused(recipe: RecipeMaker, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(FlowmapsrError, match="letter.txt"):
        build_dataset(recipe(output=str(folder)))
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    with pytest.raises(FlowmapsrError, match="is a file"):
        build_dataset(recipe(output=str(folder / "letter.txt")))


def test_bad_images_are_recorded_and_the_good_ones_kept(
    recipe: RecipeMaker, photos: Path, encoded: Any, photo: Any
) -> None:
    whole = encoded(photo(70), ".jpg")
    transparent = np.dstack([photo(71), np.full((80, 96), 9, np.uint8)])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.png").write_bytes(b"no image")
    (photos / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (photos / "thin.png").write_bytes(encoded(photo(72, width=1, height=90)))
    (photos / "glass.png").write_bytes(encoded(transparent))
    manifest = build_dataset(recipe(max_rejected_fraction=0.5))
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
    with pytest.raises(FlowmapsrError, match="max_rejected_fraction=0.05"):
        build_dataset(recipe(max_rejected_fraction=0.05))
    (photos / "empty.png").unlink()
    for index in range(3):  # only their pixels show that these are cut
        data = encoded(photo(80 + index), ".jpg")
        (photos / f"cut{index}.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(FlowmapsrError, match="Finished shards are kept"):
        build_dataset(recipe(max_rejected_fraction=0.1))
    finished = list(Path(recipe().output).glob("shards/*/*.tar"))
    assert finished
    manifest = build_dataset(recipe(max_rejected_fraction=0.5))
    assert manifest.num_samples == 18 and manifest.rejected.by_reason == {"truncated": 3}


def test_the_limit_holds_across_shards(recipe: RecipeMaker, photos: Path) -> None:
    plan = plan_dataset(recipe())
    limit = RejectionLimit(plan)
    builder = ShardBuilder(recipe())
    for task in plan.tasks:
        limit.check(task, builder(task))


def test_a_photo_that_changed_is_named(recipe: RecipeMaker, photos: Path) -> None:
    plan = plan_dataset(recipe())
    source = plan.tasks[0].samples[0].source
    Path(source.uri).write_bytes(Path(source.uri).read_bytes() + b" ")
    with pytest.raises(FlowmapsrError, match="changed since the build was planned"):
        ShardBuilder(recipe())(plan.tasks[0])


def test_photos_that_fit_no_bucket(recipe: RecipeMaker) -> None:
    buckets = BucketSettings(budgets=(PixelBudget(side=4096),))
    with pytest.raises(FlowmapsrError, match="9 too small"):
        build_dataset(recipe(buckets=buckets, max_rejected_fraction=1))


def test_plan_json_is_a_plan(recipe: RecipeMaker) -> None:
    plan = plan_dataset(recipe())
    assert Path(recipe().output, "plan.json").read_bytes() == to_json(plan)
    assert plan_dataset(recipe()) == plan
