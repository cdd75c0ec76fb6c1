"""Sends requests to S3: retries them, renews expired credentials, explains failures."""

from __future__ import annotations

import os
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

from datagen.errors import FlowmapsrError
from datagen.io.redaction import redacted
from datagen.io.s3_errors import BUSY_CODES, EXPIRED_CODES, s3_error

Answer = TypeVar("Answer")

PATIENCE = 120.0
"""Seconds for which a busy, stopped or unreachable server is retried."""
FIRST_CONTACT = 15.0
"""The same for an address that never answered this process: it is probably misspelled."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0
SILENCE = 30.0
"""Seconds without a byte after which a connection is considered lost."""
PART = 64 << 20
"""Bytes in one part of a multipart upload."""

_LASTING_STATUS = frozenset({501, 505, 507})


class _Clients:
    """boto3's clients by address; threads may share them."""

    def __init__(self) -> None:
        self._made: dict[tuple[str | None, int], Any] = {}
        self._answered: set[str | None] = set()
        self._lock = threading.Lock()

    def get(self, attempts: int = 1) -> Any:
        key = (_endpoint(), attempts)
        with self._lock:
            if key not in self._made:
                self._made[key] = _new_client(*key)
            return self._made[key]

    def renew(self, stale: Any) -> None:
        """Reads the credentials again: they may have been renewed in a file or in variables."""
        with self._lock:
            if stale in self._made.values():
                self._made.clear()

    def note_answer(self) -> None:
        self._answered.add(_endpoint())

    def patience(self) -> float:
        return PATIENCE if _endpoint() in self._answered else min(PATIENCE, FIRST_CONTACT)


_clients = _Clients()


def retried(uri: str, action: str, request: Callable[[Any], Answer]) -> Answer:
    """`request(client)`, repeated with growing random pauses as long as waiting can help.

    Retries 5xx, throttling, lost connections and incomplete bodies for about two minutes, and reads
    the credentials once more if they have expired.

    Raises:
        NotFoundError: there is no such object or bucket.
        S3Error: the server refused the request.
        FlowmapsrError: the server could not be reached. All name `uri` and contain no secret.
    """
    client = _clients.get()
    begun, pause, renewed = time.monotonic(), FIRST_PAUSE, False
    while True:
        try:
            answer = request(client)
            _clients.note_answer()
            return answer
        except _failures() as failure:
            if _code(failure):
                _clients.note_answer()
            if _is_expired(failure) and not renewed:
                renewed = True
                _clients.renew(client)
                client = _clients.get()
                continue
            left = _patience(failure) - (time.monotonic() - begun)
            if left <= 0:
                # Not chained: the library's own text may contain secrets.
                raise _explained(uri, action, failure) from None
        time.sleep(min(pause, left) * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)
        client = _clients.get()  # another thread may have read new credentials


def upload_in_parts(uri: str, stream: IO[bytes], *, bucket: str, key: str) -> None:
    """Puts a long stream in parts, each retried; nothing is left if it fails."""
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(multipart_threshold=1, multipart_chunksize=PART, max_concurrency=4)

    def upload(_: Any) -> None:
        stream.seek(0)
        # Not closed by the transfer: it may have to be sent again.
        _clients.get(attempts=8).upload_fileobj(_Borrowed(stream), bucket, key, Config=config)

    retried(uri, "write", upload)


def body(answer: dict[str, Any]) -> bytes:
    """The whole body of an answer; `retried` retries an incomplete one."""
    from botocore.exceptions import IncompleteReadError

    data: bytes = answer["Body"].read()
    if len(data) != answer["ContentLength"]:
        raise IncompleteReadError(actual_bytes=len(data), expected_bytes=answer["ContentLength"])
    return data


class _Borrowed:
    """A stream without its `close`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _new_client(endpoint: str | None, attempts: int) -> Any:
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    if endpoint and "@" in endpoint:
        raise FlowmapsrError(
            "AWS_ENDPOINT_URL contains a user name or password; give only the address and use "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=5,
        read_timeout=SILENCE,
        max_pool_connections=50,
        tcp_keepalive=True,
    )
    if endpoint:  # servers other than AWS need the bucket in the path and lack the new checksums
        config = config.merge(
            Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
        )
    try:
        core = botocore.session.Session()
        # Parsing unused dates takes half of the time of a listing.
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        session = boto3.Session(botocore_session=core)
        return session.client("s3", endpoint_url=endpoint, config=config)
    except (ValueError, BotoCoreError) as error:
        raise FlowmapsrError(
            f"S3 cannot be set up ({redacted(str(error))}); check the AWS_* variables "
            "(AWS_ENDPOINT_URL looks like http://host:port)"
        ) from None


def _failures() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return (ClientError, BotoCoreError, ResponseParserError)


def _code(failure: Exception) -> str:
    from botocore.exceptions import ClientError

    if not isinstance(failure, ClientError):
        return ""
    return str(failure.response.get("Error", {}).get("Code", ""))


def _is_expired(failure: Exception) -> bool:
    """Whether new credentials may help; a HEAD is answered by a status without a reason."""
    head = getattr(failure, "operation_name", "") == "HeadObject"
    return _code(failure) in EXPIRED_CODES or (head and _code(failure) in ("400", "403"))


def _patience(failure: Exception) -> float:
    """Seconds for which to retry after this failure."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    match failure:
        case exceptions.ClientError():
            status = failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            busy = (status >= 500 and status not in _LASTING_STATUS) or status == 429
            return PATIENCE if busy or _code(failure) in BUSY_CODES else 0.0
        case exceptions.SSLError(kwargs={"error": error}) if _is_bad_certificate(error):
            return 0.0
        case exceptions.EndpointConnectionError() | exceptions.ConnectTimeoutError():
            return _clients.patience()
        case exceptions.HTTPClientError() | exceptions.IncompleteReadError():
            return PATIENCE
        case ResponseParserError():
            return PATIENCE
    return 0.0


def _is_bad_certificate(error: object) -> bool:
    return isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(error)


def _explained(uri: str, action: str, failure: Exception) -> FlowmapsrError:
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

    reason = redacted(str(failure))
    if isinstance(failure, ClientError):
        message = str(failure.response.get("Error", {}).get("Message", ""))
        busy = _patience(failure) > 0
        return s3_error(uri, action, code=_code(failure), message=message, busy=busy)
    if isinstance(failure, HTTPClientError | IncompleteReadError):
        return FlowmapsrError(
            f"{uri}: cannot {action} it, S3 cannot be reached ({reason}); check AWS_ENDPOINT_URL "
            "and the network, then run the same command again"
        )
    return FlowmapsrError(
        f"{uri}: cannot {action} it ({reason}); check AWS_ENDPOINT_URL and the AWS_* credentials"
    )
