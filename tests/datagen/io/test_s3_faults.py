"""Failures of S3: retried where that helps, else explained."""

from __future__ import annotations

import os
import pickle
import re
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


def test_an_s3_error_is_picklable() -> None:
    refused = pickle.loads(pickle.dumps(s3_client.S3Error("s3://b/k: no", "AccessDenied")))
    assert str(refused) == "s3://b/k: no" and refused.code == "AccessDenied"


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
