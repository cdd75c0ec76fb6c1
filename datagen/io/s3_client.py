"""Turns a request to S3 into its answer or a clear end: retried, with fresh credentials if need be.

The only module that knows boto3. Knows nothing of what the requests are for.
"""

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
from datagen.io.s3_errors import BUSY_CODES, EXPIRED_CODES, refusal

Answer = TypeVar("Answer")

PATIENCE = 120.0
"""Seconds for which a server that is busy, down or unreachable is asked again."""
FIRST_CONTACT = 15.0
"""The same for an address that never answered this process: it is probably misspelt."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0
SILENCE = 30.0
"""Seconds without a byte after which a connection counts as lost."""
PART = 64 << 20
"""Bytes of one part of an upload that is too long for one request."""

_LASTING_STATUS = frozenset({501, 505, 507})


class _Clients:
    """boto3's clients of the addresses in use; they may be shared by threads."""

    def __init__(self) -> None:
        self._made: dict[tuple[str | None, int], Any] = {}
        self._answered: set[str | None] = set()
        self._lock = threading.Lock()

    def get(self, attempts: int = 1) -> Any:
        place = (_endpoint(), attempts)
        with self._lock:
            if place not in self._made:
                self._made[place] = _new_client(*place)
            return self._made[place]

    def renew(self, stale: Any) -> None:
        """Credentials are looked for anew: someone may have renewed them in file or variables."""
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

    Waits out 5xx, throttling, lost connections and broken bodies for about two minutes, and looks
    for credentials once more if they have expired. Raises NotFoundError, S3Error or, when nothing
    helped, FlowmapsrError; all name `uri`, none holds a secret.
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
                # The library's own text may hold what must not be shown: it is not chained.
                raise _explained(uri, action, failure) from None
        time.sleep(min(pause, left) * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)
        client = _clients.get()  # another thread may have found new credentials


def upload_in_parts(uri: str, stream: IO[bytes], *, bucket: str, key: str) -> None:
    """Puts a long stream in parts, each retried; nothing is left if it cannot be finished."""
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(multipart_threshold=1, multipart_chunksize=PART, max_concurrency=4)

    def upload(_: Any) -> None:
        stream.seek(0)
        # Not closed by the transfer: it may have to be sent again.
        _clients.get(attempts=8).upload_fileobj(_Borrowed(stream), bucket, key, Config=config)

    retried(uri, "write", upload)


def body(answer: dict[str, Any]) -> bytes:
    """The whole body of an answer; a short one is a lost connection to `retried`."""
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
            "AWS_ENDPOINT_URL holds a user name or password; write only the address there and use "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=5,
        read_timeout=SILENCE,
        max_pool_connections=50,
        tcp_keepalive=True,
    )
    if endpoint:  # servers other than AWS want the bucket in the path and know no new checksums
        config = config.merge(
            Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
        )
    try:
        core = botocore.session.Session()
        # Half of the time of a listing goes into dates that nobody reads here.
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
    """Whether new credentials may help; to HEAD the server gives no reason but the status."""
    head = getattr(failure, "operation_name", "") == "HeadObject"
    return _code(failure) in EXPIRED_CODES or (head and _code(failure) in ("400", "403"))


def _patience(failure: Exception) -> float:
    """Seconds for which it makes sense to repeat what failed like this."""
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
        told = str(failure.response.get("Error", {}).get("Message", ""))
        busy = _patience(failure) > 0
        return refusal(uri, action, code=_code(failure), told=told, busy=busy)
    if isinstance(failure, HTTPClientError | IncompleteReadError):
        return FlowmapsrError(
            f"{uri}: cannot {action} it, S3 cannot be reached ({reason}); check AWS_ENDPOINT_URL "
            "and the network, then run the same command again"
        )
    return FlowmapsrError(
        f"{uri}: cannot {action} it ({reason}); check AWS_ENDPOINT_URL and the AWS_* credentials"
    )
