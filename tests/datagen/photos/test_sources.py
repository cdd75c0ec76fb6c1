"""Folders, lists and archives become one ordered listing, whatever order they are found in."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from datagen.photos.scan import HeaderReader
from datagen.photos.source_file import Rejection, read_head, read_photo
from datagen.photos.sources import list_sources
from datagen.settings import FilterSettings, ImageSettings


def test_folders_are_listed_once_in_the_order_of_their_uris(
    photos: Path, encoded: Callable[..., bytes], photo: Callable[..., object], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "q.jpg").write_bytes(encoded(photo(50), ".jpg"))
    forward = list_sources([str(photos), str(other)])
    backward = list_sources([str(other), str(photos), str(photos / "p1.png")])
    assert forward == backward and len(forward.files) == 10 and not forward.rejected
    assert [file.uri for file in forward.files] == sorted(file.uri for file in forward.files)
    for file in forward.files:
        data = Path(file.uri).read_bytes()
        assert (file.bytes, read_photo(file), read_head(file, 9)) == (len(data), data, data[:9])


def test_a_stamp_changes_with_the_file(photos: Path) -> None:
    before = list_sources([str(photos)]).files
    assert list_sources([str(photos)]).files == before
    (photos / "p0.png").write_bytes((photos / "p0.png").read_bytes())
    after = list_sources([str(photos)]).files
    assert [one.uri for one, two in zip(before, after, strict=True) if one != two] == [
        str(photos / "p0.png")
    ]


def test_other_files_are_ignored(photos: Path) -> None:
    (photos / "notes.md").write_bytes(b"hello")
    (photos / ".hidden.jpg").write_bytes(b"hello")
    for folder in (".Trash-1000/files", ".thumbnails", ".git", "deep/__MACOSX"):
        (photos / folder).mkdir(parents=True)
        (photos / folder / "a.jpg").write_bytes(b"x")
    (photos / "sub").mkdir()
    (photos / "sub" / "deep.JPG").write_bytes(b"x")
    names = {Path(file.uri).name for file in list_sources([str(photos)]).files}
    assert names == {*(f"p{index}.png" for index in range(9)), "deep.JPG"}


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match="nowhere"):
        list_sources([str(tmp_path / "nowhere")])
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.md").write_bytes(b"")
    with pytest.raises(FlowmapsrError, match="bare: no photo.*among 1 files"):
        list_sources([str(tmp_path / "bare")])


def test_the_dataset_itself_is_no_source(photos: Path) -> None:
    (photos / "set" / "shards").mkdir(parents=True)
    (photos / "set" / "preview.png").write_bytes(b"x")
    (photos / "set" / "shards" / "a.tar").write_bytes(b"x")
    assert len(list_sources([str(photos)], exclude=str(photos / "set")).files) == 9


def test_a_name_that_is_not_utf8_is_rejected(photos: Path) -> None:
    os.rename(photos / "p0.png", os.fsencode(photos) + b"/caf\xe9.png")
    listing = list_sources([str(photos)])
    assert len(listing.files) == 8
    assert [(item.uri, item.reason) for item in listing.rejected] == [
        (f"{photos}/caf\\xe9.png", "name is not UTF-8")
    ]


def test_a_hidden_source_is_read_when_it_is_named_itself(photos: Path) -> None:
    hidden = photos.rename(photos.with_name(".photos"))
    assert len(list_sources([str(hidden)]).files) == 9


def test_links_without_a_file_are_left_out_when_they_are_read(photos: Path) -> None:
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "gone.png").symlink_to("nowhere.png")
    listing = list_sources([str(photos)])
    assert len(listing.files) == 11
    found = HeaderReader(ImageSettings(), FilterSettings())(listing.files)
    reasons = {Path(one.uri).name: one.reason for one in found if isinstance(one, Rejection)}
    assert reasons == {"loop.png": "missing", "gone.png": "missing"}


def test_a_list_names_photos_folders_and_missing_files(photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "lists" / "mine.txt"
    listed.parent.mkdir()
    listed.write_text(f"# mine\n{photos}/p0.png\n\n../photos/p1.png\n  {photos}/gone.png\n")
    listing = list_sources([str(listed)])
    assert [Path(file.uri).name for file in listing.files] == ["p0.png", "p1.png"]
    assert [(item.uri, item.reason) for item in listing.rejected] == [
        (str(photos / "gone.png"), "missing")
    ]
    listed.write_bytes(b"\xef\xbb\xbf../photos/p2.png\r\n")  # with a byte order mark
    assert [Path(file.uri).name for file in list_sources([str(listed)]).files] == ["p2.png"]
    listed.write_text("other.txt\n")
    with pytest.raises(FlowmapsrError, match="names another list"):
        list_sources([str(listed)])
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FlowmapsrError, match="UTF-8"):
        list_sources([str(listed)])


def test_an_archive_is_read_in_place(photos: Path, tmp_path: Path) -> None:
    archive = tmp_path / "tars" / "a.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        for path in sorted(photos.iterdir()):
            tar.add(path, arcname=f"in/{path.name}")
        tar.addfile(tarfile.TarInfo("in/notes.cls"), io.BytesIO())
    for source in (archive, archive.parent):
        files = list_sources([str(source)]).files
        assert [file.uri for file in files] == [f"{archive}#in/p{index}.png" for index in range(9)]
        for index, file in enumerate(files):
            data = (photos / f"p{index}.png").read_bytes()
            assert read_photo(file) == data and read_head(file, 10) == data[:10]
