"""Files by URI: the same behavior on a disk and on S3, and no partial writes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from datagen.io import local, s3, s3_client, storage


def test_what_is_written_is_read(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    assert not storage.exists(uri) and storage.size(uri) is None
    storage.write_bytes(uri, b"first")
    storage.write_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"second"
    assert storage.exists(uri) and storage.exists(root) and storage.size(uri) == 6
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_when_a_file_was_written_is_known_and_a_changed_one_is_not_read_on(root: str) -> None:
    uri = storage.join(root, "a.bin")
    assert storage.modified(uri) is None
    storage.write_bytes(uri, b"first")
    written, entry = storage.modified(uri), storage.entry(uri)
    assert written is not None and abs(written - time.time()) < 60 and entry is not None
    assert storage.read_range(uri, start=1, length=2, stamp=entry.stamp) == b"ir"
    storage.write_bytes(uri, b"other")
    with pytest.raises(storage.ChangedError, match=r"a\.bin: it was changed"):
        storage.read_range(uri, start=1, length=2, stamp=entry.stamp)


def test_listing_is_recursive_sorted_and_stays_in_its_folder(root: str) -> None:
    names = ["b/2.txt", "a/1.txt", "a.txt", "b/c/3.txt"]
    for name in names:
        storage.write_bytes(storage.join(root, name), b"x")
    storage.write_bytes(root + "-neighbor/4.txt", b"x")
    assert storage.list_files(root) == sorted(f"{root}/{name}" for name in names)
    assert storage.list_files(f"{root}/a.txt") == [f"{root}/a.txt"]


def test_listing_turns_pages(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PAGE", 3)
    for index in range(8):
        storage.write_bytes(f"{root}/{index}", b"")
    assert len(storage.list_files(root)) == 8


def test_missing_files_are_named(root: str) -> None:
    uri = storage.join(root, "none.bin")
    with pytest.raises(storage.NotFoundError, match="none.bin"):
        storage.read_bytes(uri)
    with pytest.raises(storage.NotFoundError, match="none.bin"):
        storage.list_files(uri)


def test_an_interrupted_write_leaves_nothing(root: str) -> None:
    uri = storage.join(root, "file.bin")
    storage.write_bytes(uri, b"old")
    with pytest.raises(RuntimeError), storage.open_atomic(uri) as stream:
        stream.write(b"half of the new")
        raise RuntimeError("killed")
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(root) == [uri]


def test_missing_bucket_is_named(root: str) -> None:
    if root.startswith("s3://"):
        with pytest.raises(FlowmapsrError, match="no-such-bucket"):
            storage.write_bytes("s3://no-such-bucket/x", b"")


def _write_to_full_device() -> None:
    with local.errors("/dev/full", "write"), open("/dev/full", "wb") as stream:
        stream.write(b"x")


def test_full_disk_is_a_clear_message() -> None:
    with pytest.raises(FlowmapsrError, match="/dev/full.*free some space"):
        _write_to_full_device()


def test_a_file_in_the_way_is_a_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FlowmapsrError, match="file/x.*choose another location"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"")


def test_unreachable_server_is_a_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(s3_client, "FIRST_CONTACT", 0.5)
    with pytest.raises(FlowmapsrError, match="s3://b/k.*AWS_ENDPOINT_URL"):
        storage.read_bytes("s3://b/k")


def test_other_schemes_are_refused() -> None:
    with pytest.raises(FlowmapsrError, match="gs://bucket"):
        storage.exists("gs://bucket/x")
