"""Full disks, odd links, killed writers: nothing half-written is left, and errors are explained."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from datagen.io import storage

DATA = bytes(range(256)) * 4000


def test_a_full_disk_at_the_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    storage.write_bytes(str(tmp_path / "file"), b"old")
    monkeypatch.setattr(os, "fsync", full)
    for write in (storage.write_bytes, storage.create_exclusive):
        with pytest.raises(FlowmapsrError, match=r"file.*free some space"):
            write(str(tmp_path / "file"), DATA)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EDQUOT, "raise the quota"),
        (errno.EIO, "reports an error"),
        (errno.EROFS, "writable location"),
        (errno.EACCES, "permission"),
        (errno.ESTALE, "mount it again"),
    ],
)
def test_disk_errors_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(
        FlowmapsrError, match=rf"file: cannot write it \({os.strerror(number)}.*{fix}"
    ):
        storage.write_bytes(str(tmp_path / "file"), DATA)
    assert os.listdir(tmp_path) == []


def test_creation_is_exclusive_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)
    path = str(tmp_path / "file")
    assert storage.create_exclusive(path, b"mine") and not storage.create_exclusive(path, b"other")
    assert storage.read_bytes(path) == b"mine" and os.listdir(tmp_path) == ["file"]


def test_a_link_reported_as_existing_counts_if_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may lose the answer and repeat the call."""
    link = os.link

    def repeated(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    path = str(tmp_path / "file")
    assert storage.create_exclusive(path, b"mine") and not storage.create_exclusive(path, b"other")


def test_a_cycle_of_links_ends_and_a_broken_link_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"123")
    (tmp_path / "a" / "ring").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "file")
    (tmp_path / "nothing").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    found = {Path(item.uri).name: item.bytes for item in storage.scan(str(tmp_path))}
    assert found == {"file": 3, "link": 3}


def test_a_link_to_what_is_not_there_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(tmp_path / "disk")
    lost = rf"{tmp_path}/mounted is a link to {tmp_path}/disk, which is not there; make that"
    with pytest.raises(FlowmapsrError, match=lost):
        storage.write_bytes(str(tmp_path / "mounted" / "set" / "file"), b"")
    with pytest.raises(storage.NotFoundError, match=lost):
        storage.read_bytes(str(tmp_path / "mounted" / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(FlowmapsrError, match="part of this path is a file"):
        storage.write_bytes(str(tmp_path / "file" / "set"), b"")


def test_a_file_that_becomes_too_large_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files acts like a full disk and works on every system."""
    code = (
        "from datagen.io import storage\n"
        "from datagen.errors import FlowmapsrError\n"
        "try:\n"
        f"    storage.write_bytes({str(tmp_path / 'file')!r}, bytes(200_000))\n"
        "except FlowmapsrError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert "raise the largest file size" in done.stdout
    assert os.listdir(tmp_path) == []


def test_only_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "a" / ".x.tar.0123456789ab.tmp"
    kept = [tmp_path / "a" / name for name in ("x.tar", "photo.tmp", ".hidden")]
    left.parent.mkdir()
    for path in [left, *kept]:
        path.write_bytes(b"")
    assert storage.remove_leftovers(str(tmp_path)) == [str(left)]
    assert storage.list_files(str(tmp_path)) == sorted(map(str, kept))
    assert storage.remove_leftovers(str(tmp_path / "none")) == []
