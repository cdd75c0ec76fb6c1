"""The functions of `storage.py` for S3 (or a compatible server); each put is atomic.

`s3_client.py` sends and retries the requests.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from itertools import chain, islice
from typing import IO, Any

from datagen.errors import ChangedError, FlowmapsrError, NotFoundError, UnreadableError
from datagen.io import local
from datagen.io.local import Entry
from datagen.io.s3_client import S3Error, retried, upload_in_parts

SCHEME = "s3://"
_PAGE = 1000
_RANGE = 1 << 20
_LARGEST_PUT = 4 * 10**9  # bytes in one request; S3's own limit is 5 GB


def entry(uri: str) -> Entry | None:
    bucket, key = _bucket_and_key(uri)
    try:
        found = _call(uri, "read", "head_object", Bucket=bucket, Key=key)
    except NotFoundError:
        return None
    return Entry(uri, int(found["ContentLength"]), found["ETag"].strip('"'))


def modified(uri: str) -> float | None:
    bucket, key = _bucket_and_key(uri)
    try:
        found = _call(uri, "read", "head_object", Bucket=bucket, Key=key)
    except NotFoundError:
        return None
    return parsedate_to_datetime(found["LastModified"]).timestamp()


def exists(uri: str) -> bool:
    return next(_scan(uri, page=1), None) is not None


def scan(uri: str) -> Iterator[Entry]:
    items = _scan(uri, page=_PAGE)
    first = next(items, None)
    if first is None:
        raise NotFoundError(f"{uri}: there is nothing under this prefix; check the address")
    yield from chain([first], items)


def names(folder: str, start: str) -> list[str]:
    bucket, key = _bucket_and_key(folder)
    prefix = _prefix(key)
    pages = _pages(folder, Bucket=bucket, Prefix=prefix + start, Delimiter="/")
    return [item["Key"].removeprefix(prefix) for item in pages]


def read_bytes(uri: str, **part: str) -> bytes:
    """The whole object, or the `Range` of it, on the condition `IfMatch`."""
    bucket, key = _bucket_and_key(uri)
    wanted = {"Bucket": bucket, "Key": key, **part}
    return retried(uri, "read", lambda s3: s3.get_object(**wanted)["Body"].read())


def read_range(uri: str, *, start: int, length: int, stamp: str | None = None) -> bytes:
    if length <= 0:
        return b""
    same = {} if stamp is None else {"IfMatch": f'"{stamp}"'}
    try:
        return read_bytes(uri, Range=f"bytes={start}-{start + length - 1}", **same)
    except S3Error as error:
        if error.code in ("PreconditionFailed", "412"):
            raise ChangedError(f"{uri}: it was changed while it was in use") from None
        if error.code == "InvalidRange":  # it starts beyond the end
            return b""
        raise


def open_random(uri: str) -> IO[bytes]:
    found = entry(uri)
    if found is None:
        raise NotFoundError(f"{uri}: there is no such object; check the address")
    return io.BufferedReader(_Ranges(uri, found.bytes), buffer_size=_RANGE)


def write_bytes(uri: str, data: bytes) -> None:
    with open_atomic(uri, spool=io.BytesIO()) as stream:
        stream.write(data)


@contextlib.contextmanager
def open_atomic(uri: str, *, spool: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """A local temporary file to write; put when the block ends, in parts only beyond 4 GB."""
    bucket, key = _bucket_and_key(uri)
    where = f"{uri} (made in {tempfile.gettempdir()} first)"
    with local.errors(where, "write"), spool or tempfile.TemporaryFile() as stream:
        yield stream
        length = stream.seek(0, io.SEEK_END)
        if length > _LARGEST_PUT:
            upload_in_parts(uri, stream, bucket=bucket, key=key)
            return

        def put(s3: Any) -> None:
            stream.seek(0)
            s3.put_object(Bucket=bucket, Key=key, Body=stream, ContentLength=length)

        retried(uri, "write", put)


def create_exclusive(uri: str, data: bytes) -> bool:
    """A refusal counts only if the object is not `data`: the answer to its put may be lost."""
    bucket, key = _bucket_and_key(uri)
    try:
        _call(uri, "write", "put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except S3Error as error:
        if error.code not in ("PreconditionFailed", "412"):
            raise
        with contextlib.suppress(NotFoundError):
            return read_bytes(uri) == data
        return False
    return True


def delete(uri: str) -> None:
    bucket, key = _bucket_and_key(uri)
    _call(uri, "delete", "delete_object", Bucket=bucket, Key=key)


def remove_leftovers(uri: str) -> list[str]:
    """Aborts multipart uploads; the first thousand are enough for one call.

    They are invisible and only cost space. So an account without permission to list them, or a
    server without them, is no error.
    """
    bucket, key = _bucket_and_key(uri)
    try:
        answer = _call(uri, "list", "list_multipart_uploads", Bucket=bucket, Prefix=_prefix(key))
        uploads = answer.get("Uploads", [])
        for upload in uploads:
            which = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
            _call(uri, "delete", "abort_multipart_upload", Bucket=bucket, **which)
    except S3Error:
        return []
    return sorted(f"{SCHEME}{bucket}/{upload['Key']}" for upload in uploads)


class _Ranges(io.RawIOBase):
    """The object as a raw stream; each read is one request for the bytes wanted."""

    def __init__(self, uri: str, length: int) -> None:
        self._uri = uri
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readall(self) -> bytes:
        return self.read(max(self._length - self._position, 0)) or b""

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._length - self._position)
        data = read_range(self._uri, start=self._position, length=wanted)
        if wanted > 0 and not data:
            raise FlowmapsrError(
                f"{self._uri}: was truncated while it was read; run the same command again"
            )
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise UnreadableError(f"{uri}: an S3 address is s3://bucket/key", "not an address")
    return bucket, key


def _prefix(key: str) -> str:
    """What the keys of all objects below a folder begin with."""
    return f"{key.rstrip('/')}/" if key else ""


def _call(uri: str, action: str, operation: str, **arguments: Any) -> Any:
    """The answer of one of boto3's operations, retried."""
    return retried(uri, action, lambda s3: getattr(s3, operation)(**arguments))


def _scan(uri: str, *, page: int) -> Iterator[Entry]:
    """The object itself comes first among those whose key begins with its own."""
    bucket, key = _bucket_and_key(uri)
    found = _pages(uri, Bucket=bucket, Prefix=_prefix(key), MaxKeys=page)
    if key and not key.endswith("/"):
        first = islice(_pages(uri, Bucket=bucket, Prefix=key, MaxKeys=1), 1)
        found = chain((item for item in first if item["Key"] == key), found)
    for item in found:
        if not item["Key"].endswith("/"):
            yield Entry(f"{SCHEME}{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))


def _pages(uri: str, **request: Any) -> Iterator[dict[str, Any]]:
    """Each page is retried separately, so that a long listing never starts over."""
    while True:
        page = _call(uri, "list", "list_objects_v2", **request)
        yield from page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]
