"""Folders of photos become one fixed list, whatever order they are found in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from datagen.sources import Rejection, list_sources


def test_photos_are_listed_by_hash_in_any_order(
    photos: Path, encoded: Callable[..., bytes], photo: Callable[..., object], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "q.jpg").write_bytes(encoded(photo(50), ".jpg"))
    forward = list_sources([str(photos), str(other)])
    backward = list_sources([str(other), str(photos), str(photos / "p1.png")])
    assert forward == backward and len(forward.images) == 10 and not forward.rejected
    assert [item.sha256 for item in forward.images] == sorted(i.sha256 for i in forward.images)
    for item in forward.images:
        data = Path(item.uri).read_bytes()
        assert (item.sha256, item.bytes) == (hashlib.sha256(data).hexdigest(), len(data))


def test_exact_duplicates_are_kept_once(photos: Path) -> None:
    (photos / "a-copy.png").write_bytes((photos / "p3.png").read_bytes())
    listing = list_sources([str(photos)])
    assert len(listing.images) == 9
    assert listing.rejected == (Rejection(uri=str(photos / "p3.png"), reason="duplicate"),)


def test_bad_files_are_rejections_and_other_files_nothing(photos: Path) -> None:
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.JPG").write_bytes(b"hello")
    (photos / "link.png").symlink_to(photos / "nowhere.png")
    (photos / "notes.txt").write_bytes(b"hello")
    (photos / ".hidden.jpg").write_bytes(b"hello")
    listing = list_sources([str(photos)])
    found = {Path(item.uri).name: item.reason for item in listing.rejected}
    assert found == {"empty.jpg": "empty file", "text.JPG": "not an image", "link.png": "missing"}
    assert len(listing.images) == 9


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match="nowhere"):
        list_sources([str(tmp_path / "nowhere")])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.txt").write_bytes(b"")
    with pytest.raises(FlowmapsrError, match="bare: no photo"):
        list_sources([str(tmp_path / "bare")])
