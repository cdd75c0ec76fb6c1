"""A manifest identifies its dataset and refuses edits; version 1 is still read."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from datagen.dataset.manifest import Manifest, load_manifest, open_dataset
from datagen.errors import FlowmapsrError
from datagen.records import as_json, to_json

VERSION_1 = Path(__file__).with_name("manifest-v1.json")
DIGEST_1 = "277d1c5752a41ebf93bc0e52035efb824a442776bc414a420d5d27a4d825b045"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copy(VERSION_1, tmp_path / "manifest.json")
    return tmp_path


@pytest.fixture
def manifest(old: Path) -> Manifest:
    """One of the current version."""
    content = load_manifest(str(old)).model_dump(exclude={"digest", "checksum"})
    return Manifest.model_validate({**content, "schema_version": 2})


def test_pictures_are_no_part_of_the_digest(manifest: Manifest) -> None:
    assert manifest.model_copy(update={"files": {"preview.png": "other"}}).digest == manifest.digest
    [shard] = manifest.shards
    for change in ({"sha256": "0" * 64}, {"path": shard.path.replace("train", "validation")}):
        changed = shard.model_copy(update=change)
        assert manifest.model_copy(update={"shards": (changed,)}).digest != manifest.digest
    assert manifest.model_copy(update={"recipe_digest": "other"}).digest != manifest.digest


def test_a_manifest_is_read_as_it_was_written(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(to_json(manifest))
    assert to_json(load_manifest(str(tmp_path))) == path.read_bytes()
    for uri in (str(path), str(tmp_path), f"{tmp_path}/"):
        assert open_dataset(uri) == (manifest, str(tmp_path))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"files": {}}, "checksum is not that of the content"),
        ({"recipe_digest": "other"}, "digest is not that of the content"),
        ({"checksum": None}, "checksum is not that of the content"),
        ({"schema_version": 3}, "schema_version: Input should be 1 or 2, not 3"),
    ],
)
def test_a_changed_manifest_is_refused(
    manifest: Manifest, tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    content = json.loads(to_json(manifest))
    (tmp_path / "manifest.json").write_bytes(as_json({**content, **change}))
    with pytest.raises(FlowmapsrError, match=fault):
        load_manifest(str(tmp_path))


def test_a_manifest_of_version_1_keeps_its_digest(old: Path) -> None:
    manifest = load_manifest(str(old))
    assert manifest.digest == DIGEST_1 == pickle.loads(pickle.dumps(manifest)).digest
    assert manifest.num_samples == sum(manifest.stats.counts.scale) == 3
    content = json.loads(VERSION_1.read_bytes())
    for change in ({"num_samples": 4}, {"digest": None}):
        (old / "manifest.json").write_bytes(as_json({**content, **change}))
        with pytest.raises(FlowmapsrError, match="digest is not that of the content"):
            load_manifest(str(old))
