"""Folders, lists and archives become one ordered listing, whatever order they are found in."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest

from datagen.build.in_process import build_in_process
from datagen.errors import FlowmapsrError
from datagen.photos.decode import SUFFIXES
from datagen.photos.heic import HEIC_SUFFIXES
from datagen.photos.source_file import read_head, read_photo
from datagen.photos.sources import Listing, list_sources
from datagen.settings import DatasetRecipe


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


def _reasons(listing: Listing) -> dict[str, str]:
    return {PurePath(item.uri).name: item.reason for item in listing.rejected}


def _kinds(listing: Listing) -> dict[str, int]:
    return {item.kind: item.files for item in listing.passed_over}


def test_entries_that_cannot_be_read_are_left_out_and_named(photos: Path) -> None:
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "gone.md").symlink_to("nowhere.md")
    deep = os.open(photos, os.O_RDONLY)
    for name in ["n" * 250] * 17:  # 4,267 bytes
        os.mkdir(name, dir_fd=deep)
        parent, deep = deep, os.open(name, os.O_RDONLY, dir_fd=deep)
        os.close(parent)
    os.close(os.open("deep.png", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
    os.close(deep)
    listing = list_sources([str(photos)])
    assert len(listing.files) == 9
    reasons = {"loop.png": "link to itself", "gone.png": "missing", "n" * 250: "path too long"}
    assert _reasons(listing) == reasons
    assert _kinds(listing) == {".md": 1}


def test_what_this_user_may_not_read_is_left_out_and_read_once_he_may(
    photos: Path, recipe: Callable[..., DatasetRecipe]
) -> None:
    """In a process without root's right to read everything."""
    (photos / "private").mkdir()
    (photos / "p0.png").rename(photos / "private" / "p0.png")
    (photos / "a.tar").write_bytes(b"")
    closed = [photos / "p1.png", photos / "a.tar", photos / "private"]
    for path in closed:
        path.chmod(0)
    asked = recipe(max_rejected_fraction=0.5)
    build = (
        "import sys; from datagen.build.in_process import build_in_process as build; "
        "from datagen.settings import DatasetRecipe as Recipe; "
        "recipe = Recipe.model_validate_json(sys.argv[1]); "
        "print(build(recipe).num_samples, build(recipe).num_samples)"
    )
    command = [sys.executable, "-c", build, asked.model_dump_json()]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "14 14\n", done.stderr
    left_out = Path(asked.output, "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["uri"]: json.loads(line)["reason"] for line in left_out} == {
        f"{photos}/p1.png": "no permission",
        f"{photos}/a.tar": "no permission",
        f"{photos}/private/": "no permission",
    }
    for path in closed:
        path.chmod(0o755)
    assert build_in_process(asked).num_samples == 18


def test_a_folder_that_is_linked_is_read_once(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "set").mkdir(parents=True)
    (photos / "p0.png").rename(other / "q.png")
    (other / "set" / "preview.png").write_bytes(b"x")
    (photos / "a").symlink_to(other)
    (photos / "b").symlink_to(other)
    (photos / "sub").mkdir()
    (photos / "sub" / "up").symlink_to("..")
    (photos / "root").symlink_to("/")
    (other / "back").symlink_to(photos)
    os.mkfifo(photos / "pipe.png")
    listing = list_sources([str(photos)], exclude=str(other / "set"))
    names = [file.uri.removeprefix(f"{photos}/") for file in listing.files]
    assert names == ["a/q.png", *(f"p{index}.png" for index in range(1, 9))]
    assert not listing.rejected
    assert _kinds(listing) == {"link to a folder that is read already": 4, "special file": 1}


def test_what_is_no_photo_is_counted_by_suffix(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datagen.photos.sources.SUFFIXES", SUFFIXES - HEIC_SUFFIXES)
    for name in ("a.HEIC", "b.heic", "c.zip", "README", ".hidden.heic", "n.txt", "o.txt", "p.txt"):
        (photos / name).write_bytes(b"x")
    listing = list_sources([str(photos)])
    assert list(_kinds(listing).items()) == [
        (".zip", 1), (".txt", 3), (".heic", 2), ("without suffix", 1)
    ]  # fmt: skip
    first, second, *_ = listing.other_files().split(", ")
    assert (first, second) == (f"1 .zip ({photos}/c.zip)", f"3 .txt (such as {photos}/n.txt)")
    assert listing.other_files().endswith("; pip install 'flowmapsr[heic]' reads HEIC")


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
    flaws = {"ftp://host/a.png": "not an address", "s3://": "not an address",
             "nul\0.png": "not an address", f"{'n' * 300}.png": "path too long",
             "\udce9.png": "name is not UTF-8"}  # fmt: skip
    listed.write_bytes("\n".join([*flaws, "../photos/p3.png"]).encode(errors="surrogateescape"))
    listing = list_sources([str(listed)])
    assert [Path(file.uri).name for file in listing.files] == ["p3.png"]
    assert sorted(item.reason for item in listing.rejected) == sorted(flaws.values())
    listed.write_text("other.txt\n")
    with pytest.raises(FlowmapsrError, match=r"names another list \(.*give both"):
        list_sources([str(listed)])
    listed.write_text("a.png\nb.png\n", encoding="utf-16")
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
