"""S3 failures and full disks: retried where that helps, else explained."""

from __future__ import annotations

import errno
import os
import pickle
import re
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from datagen.io import s3, s3_client, storage
from datagen.io.redaction import redacted
from tests.support.s3 import FaultyS3

DATA = bytes(range(256)) * 4000


@pytest.fixture
def uri(faulty_s3: FaultyS3) -> str:
    return f"s3://{faulty_s3.bucket}/folder/file.bin"


@pytest.mark.parametrize(
    ("method", "status", "code"),
    [
        ("PUT", 503, "SlowDown"),
        ("PUT", 400, "RequestTimeout"),
        ("GET", 503, "ServiceUnavailable"),
        ("GET", 500, "InternalError"),
        ("HEAD", 503, "SlowDown"),
        ("DELETE", 429, "Unnamed"),
    ],
)
def test_a_busy_server_is_retried(
    faulty_s3: FaultyS3, uri: str, method: str, status: int, code: str
) -> None:
    faulty_s3.fail("status", method, times=4, status=status, code=code)
    storage.write_bytes(uri, DATA)
    assert storage.read_bytes(uri) == DATA and storage.size(uri) == len(DATA)
    assert [entry.uri for entry in storage.scan(f"s3://{faulty_s3.bucket}/folder")] == [uri]
    storage.delete(uri)
    assert not storage.exists(uri)
    assert faulty_s3.faults[0].times == 0 and faulty_s3.requests[method] >= 5


@pytest.mark.parametrize("kind", ["reset", "lost_answer"])
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_a_lost_connection_is_retried(
    faulty_s3: FaultyS3, uri: str, method: str, kind: str
) -> None:
    faulty_s3.fail(kind, method, times=3)
    with storage.open_atomic(uri) as stream:
        stream.write(DATA)
    assert storage.read_bytes(uri) == DATA
    storage.delete(uri)
    assert not storage.exists(uri) and faulty_s3.faults[0].times == 0


@pytest.mark.parametrize("after", [0, 1, 70_000, len(DATA) - 1])
def test_an_interrupted_download_is_completed(faulty_s3: FaultyS3, uri: str, after: int) -> None:
    storage.write_bytes(uri, DATA)
    faulty_s3.fail("cut_download", "GET", times=3, after=after)
    assert storage.read_bytes(uri) == DATA
    faulty_s3.fail("cut_download", "GET", times=1, after=after)
    assert storage.read_range(uri, start=5, length=900_000) == DATA[5:900_005]
    assert faulty_s3.requests["GET"] >= 5


def test_an_interrupted_upload_is_retried_and_never_partly_visible(
    faulty_s3: FaultyS3, uri: str
) -> None:
    faulty_s3.fail("cut_upload", "PUT", times=3, after=100_000)
    with storage.open_atomic(uri) as stream:
        stream.write(DATA)
    assert storage.read_bytes(uri) == DATA and faulty_s3.requests["PUT"] == 4


def test_a_failed_upload_leaves_the_old_object(
    faulty_s3: FaultyS3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(uri, b"old")
    monkeypatch.setattr(s3_client, "PATIENCE", 0.3)
    faulty_s3.fail("cut_upload", "PUT", times=10**6, after=100_000)
    with pytest.raises(FlowmapsrError, match=r"file\.bin.*run the same command again"):
        storage.write_bytes(uri, DATA)
    faulty_s3.faults.clear()
    assert storage.read_bytes(uri) == b"old"


def test_a_silent_server_is_retried(
    faulty_s3: FaultyS3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "SILENCE", 0.2)
    storage.write_bytes(uri, DATA)
    faulty_s3.fail("delay", "GET", times=2, seconds=0.6)
    assert storage.read_bytes(uri) == DATA
    assert faulty_s3.requests["GET"] == 3


def test_a_server_that_stays_busy_is_a_clear_error(
    faulty_s3: FaultyS3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "PATIENCE", 1.0)
    faulty_s3.fail("status", "GET", times=10**6)
    with pytest.raises(FlowmapsrError, match=r"file\.bin.*SlowDown.*again later"):
        storage.read_bytes(uri)
    assert faulty_s3.requests["GET"] > 3


def test_an_interrupted_listing_continues(
    faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"s3://{faulty_s3.bucket}/many"
    for index in range(9):
        storage.write_bytes(f"{folder}/{index}", b"")
    monkeypatch.setattr(s3, "_PAGE", 2)
    listing = storage.scan(folder)
    first = [next(listing) for _ in range(5)]
    asked = faulty_s3.requests["GET"]
    faulty_s3.fail("reset", "GET")
    faulty_s3.fail("cut_download", "GET", after=50)
    rest = list(listing)
    assert [item.uri for item in first + rest] == [f"{folder}/{index}" for index in range(9)]
    assert faulty_s3.requests["GET"] == asked + 2 + 2


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired", "InvalidToken"])
def test_expired_credentials_are_read_again(
    faulty_s3: FaultyS3, uri: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    storage.write_bytes(uri, DATA)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed-key")
    faulty_s3.fail("status", "GET", status=400, code=code)
    assert storage.read_bytes(uri) == DATA
    assert faulty_s3.keys_seen[-2:] == ["test-key", "renewed-key"]


def test_expired_credentials_that_were_not_renewed_are_a_clear_error(
    faulty_s3: FaultyS3, uri: str
) -> None:
    faulty_s3.fail("status", "PUT", times=10**6, status=400, code="ExpiredToken")
    with pytest.raises(FlowmapsrError, match=r"file\.bin.*credentials have expired.*same command"):
        storage.write_bytes(uri, DATA)
    assert faulty_s3.requests["PUT"] == 2


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("AccessDenied", "may not write there"),
        ("NoSuchBucket", "no such bucket"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        ("QuotaExceeded", "raise the quota"),
        ("RequestTimeTooSkewed", r"clock \(NTP\): [+-][0-9] s from the server's"),
    ],
)
def test_lasting_errors_are_not_retried(faulty_s3: FaultyS3, uri: str, code: str, fix: str) -> None:
    faulty_s3.fail("status", "PUT", times=10**6, status=403, code=code)
    with pytest.raises(FlowmapsrError, match=rf"file\.bin.*{code}.*{fix}"):
        storage.write_bytes(uri, DATA)
    assert faulty_s3.requests["PUT"] == 1


def test_no_secret_is_in_a_message(
    faulty_s3: FaultyS3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:hidden@127.0.0.1:9")
    with pytest.raises(FlowmapsrError, match="AWS_ENDPOINT_URL") as caught:
        storage.read_bytes(uri)
    assert "hidden" not in str(caught.value)
    text = "http://u:hidden@host/b?X-Amz-Signature=hidden&X-Amz-Security-Token=hidden&a=1"
    assert redacted(text) == ("http://***@host/b?X-Amz-Signature=***&X-Amz-Security-Token=***&a=1")


def test_a_long_upload_goes_in_parts_and_survives_faults(
    faulty_s3: FaultyS3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_LARGEST_PUT", 1_000_000)
    monkeypatch.setattr(s3_client, "PART", 5 << 20)
    faulty_s3.fail("status", "PUT", times=2)
    faulty_s3.fail("cut_upload", "PUT", after=1000)
    with storage.open_atomic(uri) as stream:
        stream.write(DATA * 11)
    assert storage.read_bytes(uri) == DATA * 11
    assert faulty_s3.requests["PUT"] == 3 + 3


def test_a_long_upload_that_fails_leaves_nothing(
    faulty_s3: FaultyS3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_LARGEST_PUT", 1_000_000)
    monkeypatch.setattr(s3_client, "PART", 5 << 20)
    faulty_s3.fail("status", "PUT", times=10**6, status=403, code="AccessDenied")
    with pytest.raises(FlowmapsrError, match="may not write there"):
        storage.write_bytes(uri, DATA * 11)
    assert "Uploads" not in faulty_s3.client.list_multipart_uploads(Bucket=faulty_s3.bucket)
    assert not storage.exists(uri)


def test_uploads_left_by_a_killed_process_are_removed(faulty_s3: FaultyS3, uri: str) -> None:
    for key in ("folder/file.bin", "elsewhere/file.bin"):
        faulty_s3.client.create_multipart_upload(Bucket=faulty_s3.bucket, Key=key)
    assert storage.remove_leftovers(f"s3://{faulty_s3.bucket}/folder") == [uri]
    left = faulty_s3.client.list_multipart_uploads(Bucket=faulty_s3.bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["elsewhere/file.bin"]
    faulty_s3.fail("status", "GET", status=403, code="AccessDenied")
    assert storage.remove_leftovers(f"s3://{faulty_s3.bucket}/elsewhere") == []
    assert faulty_s3.faults[0].times == 0


def test_a_lost_answer_does_not_hide_the_winner(faulty_s3: FaultyS3, uri: str) -> None:
    faulty_s3.fail("lost_answer", "PUT")
    assert storage.create_exclusive(uri, b"mine")
    assert not storage.create_exclusive(uri, b"other")
    assert storage.read_bytes(uri) == b"mine"


def test_exactly_one_of_many_creates(faulty_s3: FaultyS3, uri: str, tmp_path: Path) -> None:
    for place in (uri, str(tmp_path / "new" / "file")):
        won: list[str] = []

        def create(name: str, place: str = place, won: list[str] = won) -> None:
            if storage.create_exclusive(place, name.encode()):
                won.append(name)

        threads = [threading.Thread(target=create, args=(str(n),)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and storage.read_bytes(place) == won[0].encode()
    assert os.listdir(tmp_path / "new") == ["file"]


def test_random_access_needs_few_requests(faulty_s3: FaultyS3, uri: str) -> None:
    data = os.urandom(3_000_000)
    storage.write_bytes(uri, data)
    with storage.open_random(uri) as stream:
        for position in range(0, 900_000, 1000):
            stream.seek(position)
            assert stream.read(100) == data[position : position + 100]
        assert faulty_s3.requests["GET"] == 1
        stream.seek(-5, os.SEEK_END)
        assert stream.read() == data[-5:] and stream.read(1) == b""
        stream.seek(0)
        asked = faulty_s3.requests["GET"]
        assert stream.read() == data and faulty_s3.requests["GET"] <= asked + 2
    assert storage.read_range(uri, start=len(data), length=4) == b""
    assert storage.read_range(uri, start=len(data) - 2, length=4) == data[-2:]


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


def test_a_full_temporary_folder_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: os.fdopen(descriptor, "w+b"))
    where = re.escape(tempfile.gettempdir())
    with (
        pytest.raises(FlowmapsrError, match=rf"file\.bin.*{where}.*free some space"),
        storage.open_atomic(uri) as stream,
    ):
        stream.write(DATA)
    assert not storage.exists(uri)


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


def test_an_s3_error_is_picklable() -> None:
    refused = pickle.loads(pickle.dumps(s3_client.S3Error("s3://b/k: no", "AccessDenied")))
    assert str(refused) == "s3://b/k: no" and refused.code == "AccessDenied"


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


def test_a_changed_file_has_another_stamp(tmp_path: Path, faulty_s3: FaultyS3) -> None:
    for root in (str(tmp_path), f"s3://{faulty_s3.bucket}"):
        where = storage.join(root, "file")
        storage.write_bytes(where, b"one")
        first = storage.entry(where)
        storage.write_bytes(where, b"two")
        second = storage.entry(where)
        assert first and second and first.bytes == second.bytes == 3
        assert first.stamp != second.stamp
        assert list(storage.scan(root)) == [second] and list(storage.scan(where)) == [second]
        assert storage.entry(root + "/none") is None
        assert storage.names(root, "fi") == ["file"] and storage.names(root + "/none", "") == []
