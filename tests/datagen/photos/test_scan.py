"""Headers give sizes and errors; equal files are found without hashing all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from datagen.photos import scan
from datagen.photos.scan import HeaderReader, hash_contents, scan_and_dedupe
from datagen.photos.source_file import SourceFile, read_photo
from datagen.photos.sources import list_sources
from datagen.settings import FilterSettings, ImageSettings

READER = HeaderReader(ImageSettings(), FilterSettings())


def _examined(photos: Path, known: dict[str, int] | None = None) -> tuple[set[str], dict[str, str]]:
    files = list_sources([str(photos)]).files
    found = scan_and_dedupe(files, READER, known_hashes=known or {})
    return (
        {Path(header.file.uri).name for header in found.photos},
        {Path(file.uri).name: reason for file, reason in found.rejected},
    )


def test_sizes_are_those_of_the_photos(photos: Path) -> None:
    headers = scan_and_dedupe(list_sources([str(photos)]).files, READER, known_hashes={}).photos
    assert [(header.width, header.height) for header in headers[:3]] == [
        (96, 80),
        (80, 96),
        (128, 70),
    ]


def test_bad_files_are_rejected_with_their_reason(photos: Path) -> None:
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.JPG").write_bytes(b"hello")
    files = (*list_sources([str(photos)]).files, SourceFile(str(photos / "gone.png"), 9, "1"))
    found = scan_and_dedupe(files, READER, known_hashes={})
    assert {Path(file.uri).name: reason for file, reason in found.rejected} == {
        "empty.jpg": "empty file",
        "text.JPG": "not an image",
        "gone.png": "missing",
    }
    assert len(found.photos) == 9


def test_exact_duplicates_are_kept_once(photos: Path) -> None:
    (photos / "a-copy.png").write_bytes((photos / "p3.png").read_bytes())
    names, rejected = _examined(photos)
    assert names == {"a-copy.png", *(f"p{index}.png" for index in range(9) if index != 3)}
    assert rejected == {"p3.png": "duplicate"}


def test_known_content_is_found(photos: Path) -> None:
    data = (photos / "p3.png").read_bytes()
    (photos / "q.png").write_bytes(data)
    known = {hashlib.sha256(data).hexdigest(): len(data)}
    found = scan_and_dedupe(list_sources([str(photos)]).files, READER, known_hashes=known)
    assert {digest: Path(file.uri).name for digest, file in found.known.items()} == {
        next(iter(known)): "p3.png"
    }
    assert [(Path(f.uri).name, reason) for f, reason in found.rejected] == [("q.png", "duplicate")]
    assert len(found.photos) == 8


def test_only_files_that_may_be_equal_are_hashed(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (photos / "p3.png").read_bytes()
    (photos / "other-head.png").write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    (photos / "same.png").write_bytes(data)
    hashed: list[str] = []

    def counting(chunk: Sequence[SourceFile]) -> list[str]:
        hashed.extend(Path(file.uri).name for file in chunk)
        return hash_contents(chunk)

    monkeypatch.setattr(scan, "hash_contents", counting)
    _examined(photos)
    assert sorted(hashed) == ["p3.png", "same.png"]


def test_a_header_far_into_the_file_is_found(
    tmp_path: Path, encoded: Callable[..., bytes], photo: Callable[..., object]
) -> None:
    """A JPEG whose size comes after 128 KB of other segments."""
    data = encoded(photo(1, width=90, height=70), ".jpg")
    filler = b"\xff\xe9" + (65000).to_bytes(2, "big") + bytes(64998)
    (tmp_path / "far.jpg").write_bytes(data[:2] + filler * 2 + data[2:])
    (file,) = list_sources([str(tmp_path)]).files
    (header,) = scan_and_dedupe([file], READER, known_hashes={}).photos
    assert (header.width, header.height) == (90, 70)
    assert len(read_photo(file)) > 128_000
