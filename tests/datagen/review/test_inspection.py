"""A sample is found by the beginning of its key and decodes to the pictures it was made of."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.manifest import Manifest, load_manifest
from datagen.dataset.shard_index import read_shard
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import to_json
from datagen.review.inspect_sample import inspect_sample, save_pictures


def _keys(dataset: Path) -> dict[str, str]:
    """Key to shard."""
    shards = load_manifest(str(dataset)).shards
    return {s.key: r.path for r in shards for s in read_shard(str(dataset / r.path))}


def test_every_sample_is_found(dataset: Path) -> None:
    for key, shard in _keys(dataset).items():
        found = inspect_sample(str(dataset), key)
        assert (found.drawn.key, found.shard) == (key, shard)


def test_the_pictures_are_those_of_the_sample(dataset: Path, tmp_path: Path) -> None:
    key, shard = next(iter(_keys(dataset).items()))
    stored = next(s for s in read_shard(str(dataset / shard)) if s.key == key)
    assert stored.hq_image is not None
    hq = np.asarray(Image.open(io.BytesIO(stored.hq_image))).astype(int)
    files = save_pictures(inspect_sample(str(dataset), key), str(tmp_path / "new"))
    assert [Path(uri).name for uri in files] == [f"{key}-{n}.png" for n in ("hq", "lq", "neg")]
    shown = np.asarray(Image.open(files[0])).astype(int)
    assert shown.shape == hq.shape and np.abs(shown - hq).mean() < 2
    assert not np.array_equal(shown, np.asarray(Image.open(files[1])))


def test_nothing_is_overwritten(dataset: Path, tmp_path: Path) -> None:
    sample = inspect_sample(str(dataset), next(iter(_keys(dataset))))
    files = save_pictures(sample, str(tmp_path))
    assert save_pictures(sample, str(tmp_path)) == files, "equal files are not in the way"
    Path(files[1]).write_bytes(b"a drawing of mine")
    Path(files[0]).unlink()
    with pytest.raises(FlowmapsrError, match="another file has this name"):
        save_pictures(sample, str(tmp_path))
    assert Path(files[1]).read_bytes() == b"a drawing of mine" and not Path(files[0]).exists()


def test_an_unambiguous_beginning_is_enough(dataset: Path) -> None:
    keys = sorted(_keys(dataset))
    assert inspect_sample(str(dataset), keys[0]).drawn.key == keys[0]
    photo = keys[0].partition("-")[0]
    assert inspect_sample(str(dataset), photo[:6]).drawn.key == keys[0], "its first sample"
    with pytest.raises(FlowmapsrError, match="18 keys begin with ''.* and 13 more"):
        inspect_sample(str(dataset), "")


def test_a_missing_key_is_refused_with_near_ones(dataset: Path) -> None:
    key = sorted(_keys(dataset))[4]
    with pytest.raises(FlowmapsrError, match=f"no sample has a key.*{key}"):
        inspect_sample(str(dataset), key[:19] + "g")
    with pytest.raises(FlowmapsrError, match=f"near ones are {key}"):
        inspect_sample(str(dataset), key[:-2] + "77")


def test_other_weights_than_the_datasets_are_refused(dataset: Path) -> None:
    manifest = load_manifest(str(dataset))
    codec = manifest.codec.model_copy(update={"fingerprint": "0" * 64})
    changed: Manifest = manifest.model_copy(update={"codec": codec})
    (dataset / "manifest.json").write_bytes(to_json(changed))
    with pytest.raises(FlowmapsrError, match="other codec weights"):
        inspect_sample(str(dataset), next(iter(_keys(dataset))))


def test_a_damaged_shard_is_named(dataset: Path) -> None:
    for shard in set(_keys(dataset).values()):
        (dataset / shard).write_bytes(b"x" * 2000)
    key = next(iter(_photo_keys(dataset)))
    with pytest.raises(FlowmapsrError, match="not a readable shard.*restore it"):
        inspect_sample(str(dataset), key)


def _photo_keys(dataset: Path) -> list[str]:
    return [f"{sha256[:20]}-00" for sha256 in KnownPhotos.read(str(dataset)).hashes()]


def test_samples_before_the_wanted_one_are_not_read(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "read_bytes", _no_tar(storage.read_bytes))
    assert inspect_sample(str(dataset), _photo_keys(dataset)[0])


def _no_tar(read: Callable[[str], bytes]) -> Callable[[str], bytes]:
    def checked(uri: str) -> bytes:
        assert not uri.endswith(".tar"), "a whole shard was read"
        return read(uri)

    return checked
