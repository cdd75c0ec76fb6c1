"""Photos inside tars are found, and a malicious tar does no harm."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos import archives
from datagen.photos.archives import scan_archive
from datagen.photos.source_file import PassedOver, Rejection, SourceFile, read_photo
from tests.support.s3 import FaultyS3


def _info(name: str, size: int = 0, **change: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in change.items():
        setattr(info, key, value)
    return info


def _tar(*files: tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in files:
            tar.addfile(_info(name, len(data)), io.BytesIO(data))
    return buffer.getvalue()


def _reasons(uri: str) -> dict[str, str]:
    found = scan_archive(uri, "")
    return {item.uri: item.reason for item in found if isinstance(item, Rejection)}


def _names(uri: str) -> list[str]:
    found = scan_archive(uri, "")
    return [item.uri.partition("#")[2] for item in found if isinstance(item, SourceFile)]


@pytest.fixture
def uri(root: str) -> str:
    return f"{root}/photos.tar"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "photos.tar")


LONG = "folder/" * 30 + "a" * 120 + ".jpg"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_photo_is_read_from_its_offset(uri: str, format: int) -> None:
    files = {
        "0001.jpg": os.urandom(1000),
        "./b/é 二.PNG": os.urandom(512),
        LONG: os.urandom(70_000),
        "last.webp": b"x",
    }
    others = {"0001.json": b"{}", "0001.cls": b"1", ".hidden.jpg": b"h", "b/._x.jpg": b"apple",
              "__MACOSX/x.jpg": b"apple", ".git/x.jpg": b"g", "film.mp4": b"f"}  # fmt: skip
    storage.write_bytes(uri, _tar(*files.items(), *others.items(), format=format))
    items = list(scan_archive(uri, "stamp"))
    assert [item.kind for item in items if isinstance(item, PassedOver)] == [
        ".json",
        ".cls",
        ".mp4",
    ]
    found = [item for item in items if isinstance(item, SourceFile)]
    assert [item.uri for item in found] == [f"{uri}#{name.removeprefix('./')}" for name in files]
    for item, data in zip(found, files.values(), strict=True):
        assert (item.stamp, item.container, item.bytes) == ("stamp", uri, len(data))
        assert storage.read_range(uri, start=item.offset, length=item.bytes) == data


def test_only_files_are_photos(path: str) -> None:
    with tarfile.open(path, "w") as tar:
        tar.addfile(_info("folder.jpg", type=tarfile.DIRTYPE))
        tar.addfile(_info("soft.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"))
        tar.addfile(_info("pipe.jpg", type=tarfile.FIFOTYPE))
        tar.addfile(_info("device.jpg", type=tarfile.CHRTYPE))
        tar.addfile(_info("photo.jpg", 1), io.BytesIO(b"x"))
    assert _names(path) == ["photo.jpg"] and _reasons(path) == {}
    kinds = [item.kind for item in scan_archive(path, "") if isinstance(item, PassedOver)]
    assert kinds == ["symbolic link in tar", "special file", "special file"]


def test_a_hard_link_has_the_bytes_of_the_member_that_it_names(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"pixels")
    os.link(folder / "a.bin", folder / "b.jpg")
    os.link(folder / "a.bin", folder / "c.png")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname="in")
        for name, linkname in [("lost.jpg", "nowhere.jpg"), ("../x.jpg", "in/a.bin")]:
            tar.addfile(_info(name, type=tarfile.LNKTYPE, linkname=linkname))
    with tarfile.open(path) as tar:  # which of the three names is the file depends on the disk
        assert sum(info.islnk() for info in tar) == 4
    found = [item for item in scan_archive(path, "s") if isinstance(item, SourceFile)]
    assert {item.uri for item in found} == {f"{path}#in/b.jpg", f"{path}#in/c.png"}
    assert [read_photo(item) for item in found] == [b"pixels", b"pixels"]
    assert _reasons(path) == {
        f"{path}#lost.jpg": "broken link in tar",
        f"{path}#../x.jpg": "unsafe name in tar",
    }


@pytest.mark.parametrize(
    "name",
    ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:\\x.jpg", "a\nb.jpg", "\udcff.jpg"],
)
def test_an_unsafe_name_is_rejected_and_the_rest_kept(path: str, name: str) -> None:
    storage.write_bytes(path, _tar(("a.jpg", b"1"), (name, b"2"), ("b.jpg", b"3")))
    assert _names(path) == ["a.jpg", "b.jpg"]
    (rejected, reason), *more = _reasons(path).items()
    assert reason == "unsafe name in tar" and more == [] and rejected.encode()


def test_a_repeated_name_is_used_once(path: str) -> None:
    storage.write_bytes(path, _tar(("a.jpg", b"1"), ("./a.jpg", b"2"), ("b.jpg", b"3")))
    assert _names(path) == ["a.jpg", "b.jpg"]
    assert _reasons(path) == {f"{path}#a.jpg@1536": "duplicate name in tar"}


def test_a_member_that_is_too_large_is_rejected(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1000)
    storage.write_bytes(path, _tar(("a.jpg", bytes(1000)), ("b.jpg", bytes(1001)), ("c.jpg", b"")))
    assert _names(path) == ["a.jpg", "c.jpg"] and _reasons(path) == {f"{path}#b.jpg": "too large"}


@pytest.mark.parametrize("size", [513, 1 << 31, 8 << 30, 1 << 60, -1, -512, -(1 << 40)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_absurd_size_ends_the_tar_and_keeps_the_photos_before(
    path: str, size: int, kind: bytes
) -> None:
    header = bytearray(_info("b.jpg", 0, type=kind).tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = struct.pack(">Bxxxq", 0x80 if size >= 0 else 0xFF, size)
    if size < 0:
        header[125:128] = b"\xff\xff\xff"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    storage.write_bytes(path, _tar(("a.jpg", b"1"))[:1024] + bytes(header) + b"x" * 512)
    assert _names(path) == ["a.jpg"]
    assert set(_reasons(path)) == {path}
    assert _reasons(path)[path] in ("truncated tar", "damaged tar")


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 1024, 1100, 1536, 1600, 2047, 2048])
def test_a_truncated_tar_keeps_the_photos_before_the_cut(uri: str, cut: int) -> None:
    whole = _tar(("a.jpg", b"1" * 400), ("b.jpg", b"2" * 400))
    storage.write_bytes(uri, whole[:cut])
    kept = sum(cut >= end for end in (512 + 400, 1536 + 400))
    assert _names(uri) == ["a.jpg", "b.jpg"][:kept]
    assert _reasons(uri) == {uri: "truncated tar"}


@pytest.mark.parametrize("at", [1024 + 10, 1024 + 130, 1024 + 150])
def test_a_damaged_header_is_not_taken_for_the_end(path: str, at: int) -> None:
    data = bytearray(_tar(("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")))
    data[at] ^= 0x11
    storage.write_bytes(path, bytes(data))
    assert _names(path) == ["a.jpg"] and _reasons(path) == {path: "damaged tar"}


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_named(path: str, compress: object) -> None:
    storage.write_bytes(path, compress(_tar(("a.jpg", os.urandom(2000)))))  # type: ignore[operator]
    assert _reasons(path) == {path: "compressed tar"} and _names(path) == []


def test_a_file_that_is_no_tar_is_named(path: str) -> None:
    for data, reason in [(b"", "truncated tar"), (b"hello " * 200, "not a tar")]:
        storage.write_bytes(path, data)
        assert _reasons(path) == {path: reason} and _names(path) == []
    storage.write_bytes(path, _tar())
    assert list(scan_archive(path, "")) == []


def test_sparse_files_are_rejected(tmp_path: Path) -> None:
    holes = tmp_path / "holes.jpg"
    with holes.open("wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"x")
    for format in ("gnu", "posix"):
        path = str(tmp_path / f"{format}.tar")
        subprocess.run(
            ["tar", f"--format={format}", "--sparse", "-cf", path, "-C", tmp_path, holes.name],
            check=True,
        )
        assert _names(path) == [] and list(_reasons(path).values()) == ["sparse file in tar"]


def test_a_chain_of_headers_ends(path: str) -> None:
    """Each long name announces the next: recursion would run out of stack."""
    one = _info("x", 512, type=tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT) + b"n" * 512
    storage.write_bytes(path, _tar(("a.jpg", b"1"))[:1024] + one * 5000)
    assert _names(path) == ["a.jpg"] and _reasons(path) == {path: "damaged tar"}


def test_a_missing_tar_is_a_storage_error(uri: str) -> None:
    with pytest.raises(FlowmapsrError, match="photos.tar"):
        list(scan_archive(uri, ""))


def test_requests_are_few_and_faults_are_survived(faulty_s3: FaultyS3) -> None:
    uri = f"s3://{faulty_s3.bucket}/photos.tar"
    storage.write_bytes(uri, _tar(*((f"{n:04d}.jpg", bytes(20_000)) for n in range(100))))
    faulty_s3.requests.clear()
    assert len(_names(uri)) == 100
    assert faulty_s3.requests == {"HEAD": 1, "GET": 3}  # 2.1 MB
    faulty_s3.fail("cut_download", "GET", after=300_000)
    faulty_s3.fail("reset", "GET")
    assert len(_names(uri)) == 100


def test_a_long_tar_is_streamed(path: str) -> None:
    block = _tar(("a.json", b""))[:512]
    storage.write_bytes(path, block * 20_000 + _tar(("last.jpg", b"")))
    tracemalloc.start()
    assert _names(path) == ["last.jpg"]
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
