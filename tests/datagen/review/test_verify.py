"""Every damage to a finished dataset is an issue that names the file or sample."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.dataset.records import RejectedCount
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample, stored_latents, write_latents
from datagen.errors import FlowmapsrError
from datagen.records import as_json, to_json
from datagen.review.recompute import recompute_samples
from datagen.review.verify import verify_dataset
from datagen.samples.pixels import png
from datagen.settings import DatasetRecipe
from tests.support.shards import write_shard


def _only_issue(dataset: Path) -> str:
    issues = verify_dataset(str(dataset))
    assert len(issues) == 1, issues
    return f"{issues[0].where}: {issues[0].what}"


def _first_tar(dataset: Path) -> Path:
    return dataset / load_manifest(str(dataset)).shards[0].path


def test_an_undamaged_dataset_has_no_issues(dataset: Path) -> None:
    assert verify_dataset(str(dataset)) == []
    assert verify_dataset(str(dataset / "manifest.json")) == []
    moved = dataset.with_name("moved")
    shutil.move(dataset, moved)
    assert verify_dataset(str(moved)) == []


@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 0.999])
def test_one_flipped_bit_is_found(dataset: Path, where: float) -> None:
    tar = _first_tar(dataset)
    data = bytearray(tar.read_bytes())
    data[int(where * len(data))] ^= 1
    tar.write_bytes(data)
    assert "checksum" in _only_issue(dataset) and tar.name in _only_issue(dataset)


def test_missing_and_stray_files_are_issues(dataset: Path) -> None:
    tar = _first_tar(dataset)
    stray = tar.with_name("train-000099.tar")
    shutil.copy(tar, stray)
    assert "stray" in _only_issue(dataset) and stray.name in _only_issue(dataset)
    stray.unlink()
    tar.unlink()
    assert tar.name in _only_issue(dataset)


def test_kept_manifests_belong_to_a_dataset_and_are_checked(dataset: Path) -> None:
    manifest = load_manifest(str(dataset))
    kept = dataset / "manifests" / f"{manifest.digest}.json"
    earlier = manifest.model_copy(update={"shards": manifest.shards[:1]})
    kept.with_name(f"{earlier.digest}.json").write_bytes(to_json(earlier))
    assert verify_dataset(str(kept)) == verify_dataset(str(dataset)) == []
    kept.with_name("notes.txt").touch()
    assert "notes.txt: stray" in _only_issue(dataset)
    kept.with_name("notes.txt").unlink()
    kept.write_bytes(to_json(earlier))
    assert kept.name in _only_issue(dataset) and "not that of its name" in _only_issue(dataset)
    kept.write_bytes(to_json(manifest)[:-9])
    assert kept.name in _only_issue(dataset) and "corrupt" in _only_issue(dataset)


@pytest.mark.parametrize(
    "name", ["sources.jsonl", "rejected.jsonl", "preview.png", "histograms.png"]
)
def test_missing_lists_and_pictures_are_issues(dataset: Path, name: str) -> None:
    (dataset / name).unlink()
    assert name in _only_issue(dataset)


def test_a_missing_record_is_an_issue(dataset: Path) -> None:
    _first_tar(dataset).with_suffix(".json").unlink()
    assert ".json" in _only_issue(dataset) and "no such file" in _only_issue(dataset)


@pytest.mark.parametrize(
    "changes,what",
    [
        ({"num_samples": 17}, "num_samples"),
        ({"bytes": 1}, "bytes"),
        ({"recipe_digest": "0" * 64}, "recipe_digest"),
        ({"rejected": RejectedCount(count=3, by_reason={})}, "rejected.jsonl: 0 lines"),
        ({"rejected": RejectedCount(count=0, by_reason={"blurred": 1})}, "counts by reason"),
    ],
)
def test_a_manifest_with_wrong_sums_is_an_issue(
    dataset: Path, changes: dict[str, Any], what: str
) -> None:
    wrong = load_manifest(str(dataset)).model_copy(update=changes)
    (dataset / "manifest.json").write_bytes(to_json(wrong))
    assert what in _only_issue(dataset)


def test_statistics_of_other_samples_are_an_issue(dataset: Path) -> None:
    manifest = load_manifest(str(dataset))
    stats = manifest.stats
    others: dict[str, dict[str, Any]] = {
        "counts of scale": {"counts": stats.counts.model_copy(update={"scale": (1,) * 63})},
        "counts of photo_side": {"counts": stats.counts.model_copy(update={"photo_side": (1,)})},
        "counts of buckets": {"counts": stats.counts.model_copy(update={"buckets": {}})},
        "statistics of latents": {
            "latent": stats.latent.model_copy(update={"std": (1.0,) * len(stats.latent.std)})
        },
    }
    for what, update in others.items():
        wrong = manifest.model_copy(update={"stats": stats.model_copy(update=update)})
        (dataset / "manifest.json").write_bytes(to_json(wrong))
        assert what in _only_issue(dataset)


def test_a_path_is_named_once(dataset: Path) -> None:
    _first_tar(dataset).unlink()
    assert _only_issue(dataset).count(str(_first_tar(dataset))) == 1
    (dataset / "manifest.json").unlink()
    assert _only_issue(dataset).count(str(dataset)) == 1


def test_the_checksum_is_that_of_the_content(dataset: Path) -> None:
    path = dataset / "manifest.json"
    lines = path.read_text().splitlines()
    assert lines[-2].startswith('  "checksum": ')
    content = json.loads(path.read_bytes())
    checksum = content.pop("checksum")
    assert checksum == hashlib.sha256(as_json(content)).hexdigest()
    path.write_text(json.dumps({**content, "checksum": checksum, "num_samples": 17}))
    assert "checksum is not that of the content" in _only_issue(dataset)
    with pytest.raises(FlowmapsrError, match="changed or damaged"):
        load_manifest(str(dataset))
    path.write_text(json.dumps(content))
    assert "checksum is not that of the content" in _only_issue(dataset)
    path.write_text(json.dumps({**content, "checksum": checksum}))
    assert "not those that were written" in _only_issue(dataset)


def test_a_dataset_of_version_1_is_valid(dataset: Path) -> None:
    path = dataset / "manifest.json"
    content = {**json.loads(path.read_bytes()), "schema_version": 1}
    content["stats"]["scale"] = {"edges": [1.0, 2.0], "counts": [18]}
    del content["digest"], content["checksum"]
    content["digest"] = hashlib.sha256(as_json(content)).hexdigest()
    path.write_bytes(as_json(content))
    assert verify_dataset(str(dataset)) == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bit_flipped_in_any_file_is_found(dataset: Path, seed: int) -> None:
    rng = random.Random(seed)
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    kinds = {path.name if path.parent == dataset else path.suffix for path in files}
    assert kinds >= {"manifest.json", "rejected.jsonl", "sources.jsonl", "preview.png", ".tar"}
    for path in files:
        data = path.read_bytes()
        if not data:  # nothing was left out
            continue
        bit = rng.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        issues = verify_dataset(str(dataset))
        assert any(path.name in f"{issue.where}{issue.what}" for issue in issues), (path, bit)
        path.write_bytes(data)
    assert verify_dataset(str(dataset)) == []


def test_every_bit_of_a_manifest_counts(dataset: Path) -> None:
    path = dataset / "manifest.json"
    data = path.read_bytes()
    manifest = load_manifest(str(dataset))
    rng = random.Random(5)
    for _ in range(300):
        bit = rng.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert to_json(load_manifest(str(dataset))) != bytes(changed)
        except FlowmapsrError:
            continue
    path.write_bytes(data)
    assert load_manifest(str(dataset)) == manifest


def test_order_and_progress_do_not_depend_on_the_threads(dataset: Path) -> None:
    for tar in sorted(dataset.rglob("*.tar"))[::2]:
        tar.write_bytes(tar.read_bytes()[:-1] + b"!")
    found, seen = [], []
    for workers in (1, 5):
        calls: list[tuple[int, int]] = []
        on_shard = lambda done, total, calls=calls: calls.append((done, total))  # noqa: E731
        found.append(verify_dataset(str(dataset), workers=workers, on_shard=on_shard))
        seen.append(calls)
    total = load_manifest(str(dataset)).num_shards
    assert seen == [[(done, total) for done in range(1, total + 1)]] * 2
    assert found[0] == found[1] and len(found[0]) == len(list(dataset.rglob("*.tar"))[::2])


def test_a_photo_in_the_wrong_split_is_an_issue(dataset: Path) -> None:
    manifest = load_manifest(str(dataset))
    record = manifest.shards[0]
    other = "validation" if record.split == "train" else "train"
    wrong = record.model_copy(update={"split": other})
    (dataset / record.path).with_suffix(".json").write_bytes(to_json(wrong))
    update = {"shards": (wrong, *manifest.shards[1:])}
    (dataset / "manifest.json").write_bytes(to_json(manifest.model_copy(update=update)))
    issues = verify_dataset(str(dataset))
    assert len(issues) == record.num_samples
    assert {issue.what for issue in issues} == {f"a {record.split} photo in a {other} shard"}


def test_an_open_build_is_named(dataset: Path) -> None:
    (dataset / "plan.json").write_text("{}")
    assert "a build is open" in _only_issue(dataset)


def test_an_unreadable_manifest_is_an_issue_and_refused(dataset: Path) -> None:
    path = dataset / "manifest.json"
    content = json.loads(path.read_bytes())
    issues = {
        "Invalid JSON": "{",
        "Input should be 1 or 2, not 99": json.dumps({**content, "schema_version": 99}),
        "recipe: Field required": json.dumps({"schema_version": 2}),
    }
    for what, text in issues.items():
        path.write_text(text)
        assert what in _only_issue(dataset)
        with pytest.raises(FlowmapsrError, match=what):
            load_manifest(str(dataset))
    path.unlink()
    assert "there is no manifest" in _only_issue(dataset)


def _rewrite(dataset: Path, change: Callable[[list[ShardSample]], list[ShardSample]]) -> None:
    """Replaces the samples of the first shard and makes record and manifest agree with them."""
    manifest = load_manifest(str(dataset))
    record = manifest.shards[0]
    written = write_shard(
        str(dataset / record.path), change(read_shard(str(dataset / record.path)))
    )
    new = record.model_copy(update=vars(written))
    (dataset / record.path).with_suffix(".json").write_bytes(to_json(new))
    shards = (new, *manifest.shards[1:])
    update = {
        "shards": shards,
        "bytes": sum(item.bytes for item in shards),
        "num_samples": sum(item.num_samples for item in shards),
    }
    (dataset / "manifest.json").write_bytes(to_json(manifest.model_copy(update=update)))
    shutil.rmtree(dataset / "manifests", ignore_errors=True)  # of the shard as it was


def _replaced(sample: ShardSample, **changes: Any) -> ShardSample:
    return ShardSample(**{**vars(sample), **changes})


def test_every_sample_is_checked(dataset: Path) -> None:
    original = read_shard(str(_first_tar(dataset)))
    first = original[0]
    latents = stored_latents(first)
    broken = latents["lq"].copy()
    broken[0, 0, 0] = np.nan
    changed = {
        "latent lq is not finite": {"latents": write_latents(latents | {"lq": broken})},
        "latent neg is float16": {"latents": write_latents(latents | {"neg": latents["neg"][:3]})},
        "holds hq, lq, the recipe asks for hq, lq, neg": {
            "latents": write_latents({name: latents[name] for name in ("hq", "lq")})
        },
        "latents.safetensors missing": {"latents": None},
        "lq.png not asked for": {"lq_image": png(np.zeros((8, 8, 3), np.uint8))},
        "latents.safetensors": {"latents": b"junk"},
        "meta.json is malformed": {"meta": b"{}"},
        "hq.jpg missing": {"hq_image": None},
        "HQ pixels are no image": {"hq_image": b"junk"},
    }
    for what, change in changed.items():
        samples = [_replaced(first, **change), *original[1:]]
        _rewrite(dataset, lambda _, new=samples: new)  # type: ignore[misc]
        assert what in _only_issue(dataset) and first.key in _only_issue(dataset)


def test_samples_are_made_again_from_their_photos(
    recipe: Callable[..., DatasetRecipe], photos: Path, tmp_path: Path
) -> None:
    with tarfile.open(photos / "a.tar", "w") as tar:  # its photos stay where they are
        for name in ("p0.png", "p1.png"):
            tar.add(photos / name)
            (photos / name).unlink()
    asked = recipe(samples_per_shard=4)
    build_in_process(asked)
    dataset = Path(asked.output)
    assert recompute_samples(asked.output) == ([], [])
    original = read_shard(str(_first_tar(dataset)))
    first = stored_latents(original[0])
    swapped = write_latents(first | {"lq": first["neg"] * 2})
    other = original[0].meta.replace(b'"scale": ', b'"scale": 1')
    changes = {
        "latent lq is not what the codec makes": {"latents": swapped},
        "meta.json is not what the recipe draws": {"meta": other},
    }
    for what, change in changes.items():
        _rewrite(dataset, lambda _, c=change: [_replaced(original[0], **c), *original[1:]])  # type: ignore[misc]
        (issue,), skipped = recompute_samples(asked.output)
        assert what in issue.what and original[0].key in issue.where and skipped == []
    shutil.rmtree(photos)
    shards = [record.path for record in load_manifest(asked.output).shards]
    issues, not_made = recompute_samples(asked.output)
    assert issues == [] and [one.shard for one in not_made] == shards
    assert all(what.endswith(" is gone") for one in not_made for what in one.missing)
    assert {what.split(".")[0] for one in not_made for what in one.missing} > {f"{photos}/p2"}


def test_repeated_and_unknown_keys_are_issues(dataset: Path) -> None:
    last = load_manifest(str(dataset)).shards[-1]
    key = read_shard(str(dataset / last.path))[0].key
    _rewrite(dataset, lambda samples: [_replaced(samples[0], key=key), *samples[1:]])
    issues = [issue.what for issue in verify_dataset(str(dataset))]
    assert f"this key is in {last.path} too" in issues
    assert any("meta.json says key" in what for what in issues)
    _rewrite(dataset, lambda samples: [_replaced(samples[0], key=20 * "0" + "-00"), *samples[1:]])
    issues = [issue.what for issue in verify_dataset(str(dataset))]
    assert "sources.jsonl has no photo of this key" in issues
