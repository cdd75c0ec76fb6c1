"""Turns str URIs (local paths or `s3://`) into bytes and back; a file exists only when complete.

The only module that knows boto3. Knows nothing about photos or datasets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from datagen.errors import FlowmapsrError

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

TEMPORARY_SUFFIX = ".tmp"
"""Ends the name of every file that is being written; a leftover of a killed process keeps it."""

_S3 = "s3://"
_READ_ATTEMPTS = 5
_PAGE = 1000
_MISSING_CODES = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})
_FIXES = {
    errno.ENOSPC: "free some space there or choose another place",
    errno.EDQUOT: "raise the quota there or choose another place",
    errno.EACCES: "give this user permission there or choose another place",
    errno.EPERM: "give this user permission there or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EEXIST: "part of this path is a file: choose another place",
    errno.ENOTDIR: "part of this path is a file: choose another place",
    errno.EISDIR: "this is a folder where a file is expected",
}


class NotFoundError(FlowmapsrError):
    """There is nothing at the URI."""


def is_remote(uri: str) -> bool:
    """Whether the URI lies in S3; FlowmapsrError for a scheme that is neither S3 nor local."""
    if uri.startswith(_S3):
        return True
    if "://" in uri:
        raise FlowmapsrError(f"{uri}: only local paths and s3:// addresses can be used")
    return False


def join(uri: str, *parts: str) -> str:
    """The URI of something inside the folder `uri`."""
    return "/".join([uri.rstrip("/") if uri != "/" else "", *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether there is a file, a folder or (on S3) anything below the prefix."""
    if not is_remote(uri):
        return os.path.exists(uri)
    return next(_objects(uri), None) is not None


def size(uri: str) -> int | None:
    """Bytes of the file, None when there is none."""
    if not is_remote(uri):
        return os.path.getsize(uri) if os.path.isfile(uri) else None
    bucket, key = _bucket_and_key(uri)
    try:
        with _s3_errors(uri):
            return int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])
    except NotFoundError:
        return None


def read_bytes(uri: str) -> bytes:
    """The whole file; NotFoundError when it is missing, FlowmapsrError when it cannot be read."""
    if is_remote(uri):
        return _read_object(uri)
    with _file_errors(uri, "read"):
        return Path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Publishes `data` at once: readers see the old file or the whole new one, never a part."""
    with open_atomic(uri) as stream:
        stream.write(data)


@contextlib.contextmanager
def open_atomic(uri: str) -> Iterator[IO[bytes]]:
    """A binary file to write that appears at `uri` when the block ends, not at all if it raises.

    Local: a temporary name in the same folder, then fsync and rename. S3: a local temporary file,
    then one put. Raises FlowmapsrError, naming the URI, for a full disk or a missing permission.
    """
    if is_remote(uri):
        bucket, key = _bucket_and_key(uri)
        with tempfile.TemporaryFile() as spool:
            with _file_errors(uri, "prepare"):
                yield spool
                spool.seek(0)
            with _s3_errors(uri):
                _client().put_object(Bucket=bucket, Key=key, Body=spool)
        return
    path = Path(uri)
    with _file_errors(uri, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
        try:
            with open(temporary, "xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def list_files(uri: str) -> list[str]:
    """Full URIs of all files below the folder or prefix, sorted; of a file, itself.

    Raises NotFoundError when there is nothing at the URI. An existing empty folder gives [].
    """
    if is_remote(uri):
        found = sorted(_objects(uri))
        if not found:
            raise NotFoundError(f"{uri}: there is nothing under this prefix; check the address")
        return found
    if os.path.isfile(uri):
        return [uri]
    if not os.path.isdir(uri):
        raise NotFoundError(f"{uri}: there is no such file or folder; check the path")
    with _file_errors(uri, "list"):
        return sorted(
            join(folder, name)
            for folder, _, names in os.walk(uri, onerror=_reraise)
            for name in names
        )


def delete(uri: str) -> None:
    """Removes one file; one already gone is no error, so that a deletion can be repeated."""
    if is_remote(uri):
        bucket, key = _bucket_and_key(uri)
        with _s3_errors(uri):
            _client().delete_object(Bucket=bucket, Key=key)
        return
    with _file_errors(uri, "delete"):
        Path(uri).unlink(missing_ok=True)


def _reraise(error: OSError) -> None:
    raise error


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _file_errors(uri: str, action: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri}: there is no such file; check the path") from error
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, "check the path and try again")
        reason = error.strerror or str(error)
        raise FlowmapsrError(f"{uri}: cannot {action} it ({reason}); {fix}") from error


@lru_cache(maxsize=8)
def _client_for(endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"max_attempts": 5, "mode": "standard"},
        connect_timeout=5,
        read_timeout=30,
        s3={"addressing_style": "path"} if endpoint else {},
    )
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def _client() -> Any:
    """boto3's S3 client of the address in use; it may be shared by threads."""
    return _client_for(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    if not bucket:
        raise FlowmapsrError(f"{uri}: an S3 address is s3://bucket/key")
    return bucket, key


def _objects(uri: str) -> Iterator[str]:
    bucket, key = _bucket_and_key(uri)
    folder = key.rstrip("/") + "/" if key else ""
    pages = (
        _client()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket, Prefix=key, PaginationConfig={"PageSize": _PAGE})
    )
    with _s3_errors(uri):
        for page in pages:
            for item in page.get("Contents", []):
                found: str = item["Key"]
                if (found == key or found.startswith(folder)) and not found.endswith("/"):
                    yield f"{_S3}{bucket}/{found}"


def _read_object(uri: str) -> bytes:
    """boto3 retries the request but not the body: a connection lost half-way is asked for again."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

    bucket, key = _bucket_and_key(uri)
    for attempt in range(_READ_ATTEMPTS):
        with _s3_errors(uri):
            body = _client().get_object(Bucket=bucket, Key=key)["Body"]
            try:
                data: bytes = body.read()
                return data
            except (HTTPClientError, IncompleteReadError, ResponseStreamingError):
                if attempt == _READ_ATTEMPTS - 1:
                    raise
        time.sleep(0.2 * 2**attempt)
    raise AssertionError("the loop returns or raises")


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _client_failure(uri, error) from error
    except BotoCoreError as error:
        raise _connection_failure(uri, error) from error


def _client_failure(uri: str, error: ClientError) -> FlowmapsrError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _MISSING_CODES:
        return NotFoundError(
            f"{uri}: there is no such object or bucket ({code}); check the address"
        )
    return FlowmapsrError(
        f"{uri}: S3 refused ({error}); check the AWS_* variables and this account's permissions"
    )


def _connection_failure(uri: str, error: BotoCoreError) -> FlowmapsrError:
    return FlowmapsrError(
        f"{uri}: S3 cannot be reached ({error}); check AWS_ENDPOINT_URL and the AWS_* credentials"
    )
