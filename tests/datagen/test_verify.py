"""Every damage to a finished dataset is a fault that names its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen.build import build_dataset
from datagen.errors import FlowmapsrError
from datagen.manifest import load_manifest, to_json
from datagen.settings import DatasetRecipe
from datagen.shards import Latents, ShardSample, read_shard, write_shard
from datagen.verify import verify_dataset

RecipeMaker = Callable[..., DatasetRecipe]


@pytest.fixture
def dataset(recipe: RecipeMaker) -> Path:
    build_dataset(recipe())
    return Path(recipe().output)


def _only_fault(dataset: Path) -> str:
    faults = verify_dataset(str(dataset))
    assert len(faults) == 1, faults
    return f"{faults[0].where}: {faults[0].what}"


def _first_tar(dataset: Path) -> Path:
    return dataset / load_manifest(str(dataset)).shards[0].path


def test_a_sound_dataset_has_no_faults(dataset: Path) -> None:
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
    assert "checksum" in _only_fault(dataset) and tar.name in _only_fault(dataset)


def test_missing_and_stray_files(dataset: Path) -> None:
    tar = _first_tar(dataset)
    stray = tar.with_name("train-000099.tar")
    shutil.copy(tar, stray)
    assert "stray" in _only_fault(dataset) and stray.name in _only_fault(dataset)
    stray.unlink()
    tar.unlink()
    assert tar.name in _only_fault(dataset)


def test_missing_record(dataset: Path) -> None:
    _first_tar(dataset).with_suffix(".json").unlink()
    assert "no such file" in _only_fault(dataset)


@pytest.mark.parametrize(
    "field,value,what",
    [
        ("num_samples", 17, "num_samples"),
        ("bytes", 1, "bytes"),
        ("recipe_digest", "0" * 64, "recipe_digest"),
        ("rejected", {"count": 3, "by_reason": {}}, "rejected.jsonl"),
    ],
)
def test_a_changed_manifest(dataset: Path, field: str, value: Any, what: str) -> None:
    path = dataset / "manifest.json"
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps({**content, field: value}))
    assert what in _only_fault(dataset)


def test_an_unreadable_manifest(dataset: Path) -> None:
    path = dataset / "manifest.json"
    content = json.loads(path.read_bytes())
    faults = {
        "not JSON": "{",
        "schema_version is 99": json.dumps({**content, "schema_version": 99}),
        "num_shards": json.dumps({**content, "num_shards": "many"}),
    }
    for what, text in faults.items():
        path.write_text(text)
        assert what in _only_fault(dataset)
        with pytest.raises(FlowmapsrError, match=what):
            load_manifest(str(dataset))
    path.unlink()
    assert "there is no manifest" in _only_fault(dataset)


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


def _replaced(sample: ShardSample, **changes: Any) -> ShardSample:
    return ShardSample(**{**vars(sample), **changes})


def test_samples_are_looked_into(dataset: Path) -> None:
    original = read_shard(str(_first_tar(dataset)))
    first = original[0]
    latents = Latents.from_bytes(first.latents)
    broken = latents.lq.copy()
    broken[0, 0, 0] = np.nan
    changed = {
        "latent lq is not finite": {
            "latents": Latents(hq=latents.hq, lq=broken, neg=latents.neg).to_bytes()
        },
        "latent neg is float16": {
            "latents": Latents(hq=latents.hq, lq=latents.lq, neg=latents.neg[:3]).to_bytes()
        },
        "latents.safetensors": {"latents": b"junk"},
        "meta.json is malformed": {"meta": b"{}"},
        "hq.jpg missing": {"hq_jpeg": None},
        "hq.jpg is no JPEG": {"hq_jpeg": b"junk"},
    }
    for what, change in changed.items():
        samples = [_replaced(first, **change), *original[1:]]
        _rewrite(dataset, lambda _, new=samples: new)  # type: ignore[misc]
        assert what in _only_fault(dataset) and first.key in _only_fault(dataset)


def test_keys_are_unique(dataset: Path) -> None:
    last = load_manifest(str(dataset)).shards[-1]
    key = read_shard(str(dataset / last.path))[0].key
    _rewrite(dataset, lambda samples: [_replaced(samples[0], key=key), *samples[1:]])
    assert "this key is in" in " ".join(fault.what for fault in verify_dataset(str(dataset)))
