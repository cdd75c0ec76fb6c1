"""Sends requests to S3: retries them, renews expired credentials, explains failures."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import IO, Any, TypeVar

from datagen.errors import FlowmapsrError, NoServerError, NotFoundError, UnreadableError
from datagen.io.probe import ask_http, asked, silence
from datagen.io.redaction import redacted

with suppress(ImportError):  # machines that use local files only need no boto3
    from botocore import exceptions

Answer = TypeVar("Answer")

PATIENCE = 120.0  # seconds for which a busy, stopped or unreachable server is retried
FIRST_CONTACT = 8.0  # the same for an address that never answered: it is probably misspelled
FIRST_SILENCE = 4.0  # SILENCE for such an address, which is asked for nothing that takes time
ADDRESSES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first that is set counts
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0
SILENCE = 30.0  # seconds without a byte after which a connection is considered lost
PART = 64 << 20  # bytes in one part of a multipart upload

_EXPIRED_CODES = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken",
     "TokenRefreshRequired"}
)  # fmt: skip
_BUSY_CODES = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded",
     "TooManyRequests", "RequestTimeout", "InternalError", "ServiceUnavailable", "IncompleteBody",
     "BadDigest", "OperationAborted", "ConditionalRequestConflict"}
)  # fmt: skip
_CLOSED = {
    "AccessDenied": "no permission",
    "403": "no permission",
    "InvalidObjectState": "archived",
}
"""Refusals to read that say nothing of other objects, by their code: a short reason."""
_FIXES = {
    "AccessDenied": "this account may not {action} there: give it permission or choose another "
    "location",
    "403": "this account may not {action} there: give it permission, check the AWS_* credentials "
    "or choose another location",
    "NoSuchBucket": "there is no such bucket: create it or correct the address",
    "InvalidBucketName": "correct the name of the bucket",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "set this machine's clock (NTP): {clock}",
    "InvalidObjectState": "it is archived: restore it first",
    "QuotaExceeded": "raise the quota there or choose another location",
    "XMinioStorageFull": "free some space there or choose another location",
    "NotImplemented": "this server lacks what is needed: use one with conditional puts",
    **dict.fromkeys(
        _EXPIRED_CODES, "the credentials have expired: renew them and run the same command again"
    ),
}

# boto3's clients by address and attempts, shared by threads; and the addresses that answered.
_clients: dict[tuple[str | None, int], Any] = {}
_answered: set[str | None] = set()
_lock = threading.Lock()


class S3Error(FlowmapsrError):
    """The server refused a request; `code` is its error code."""

    def __init__(self, message: str, code: str = "") -> None:  # pickle gives the message only
        FlowmapsrError.__init__(self, message)
        self.code = code


class ClosedObjectError(S3Error, UnreadableError):
    """This account may not read one object, or it is in an archive; others may be readable."""

    def __init__(self, message: str, code: str = "") -> None:
        S3Error.__init__(self, message, code)
        self.reason = _CLOSED.get(code, "no permission")


def retried(uri: str, action: str, request: Callable[[Any], Answer]) -> Answer:
    """`request(client)`, repeated with growing random pauses as long as waiting can help.

    Retries 5xx, throttling, lost connections and incomplete bodies for about two minutes, and reads
    the credentials once more if they have expired.

    Raises:
        NotFoundError: there is no such object or bucket.
        S3Error: the server refused the request.
        FlowmapsrError: the server could not be reached. All name `uri` and contain no secret.
    """
    client = _client()
    _await_first_answer(uri, action)
    from botocore.parsers import ResponseParserError  # slow to import

    begun, pause, renewed = time.monotonic(), FIRST_PAUSE, False
    while True:
        try:
            answer = request(client)
            _answered.add(_endpoint())
            return answer
        except (exceptions.ClientError, exceptions.BotoCoreError, ResponseParserError) as failure:
            if _code(failure):
                _answered.add(_endpoint())
            if _is_expired(failure) and not renewed:
                renewed = True
                _forget(client)
                client = _client()
                continue
            left = _patience(failure) - (time.monotonic() - begun)
            if left <= 0:
                # Not chained: the library's own text may contain secrets.
                raise _explained(uri, action, failure) from None
        time.sleep(min(pause, left) * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)
        client = _client()  # another thread may have read new credentials


def _await_first_answer(uri: str, action: str) -> None:
    """Asks an address that never answered whether a server is there, until one is.

    Raises:
        NoServerError: none is after `FIRST_CONTACT` seconds.
    """
    endpoint = _endpoint()
    if endpoint is None or endpoint in _answered:
        return
    end, pause = time.monotonic() + min(PATIENCE, FIRST_CONTACT), FIRST_PAUSE
    while (left := end - time.monotonic()) > 0:
        limit = min(left, FIRST_SILENCE)
        reason = silence(asked(ask_http, endpoint, seconds=limit), seconds=limit)
        if reason is None:
            _answered.add(endpoint)
            return
        time.sleep(min(pause, max(0.0, end - time.monotonic())))
        pause *= 2
    variable = next(name for name in ADDRESSES if os.environ.get(name))
    raise NoServerError(
        f"{uri}: cannot {action} it: no S3 server answers at {variable}={redacted(endpoint)} "
        f"({reason}); start it, correct the variable, or unset it to use AWS itself"
    )


def upload_in_parts(uri: str, stream: IO[bytes], *, bucket: str, key: str) -> None:
    """Puts a long stream in parts, each retried; nothing is left if it fails."""
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(multipart_threshold=1, multipart_chunksize=PART, max_concurrency=4)

    def upload(_: Any) -> None:
        stream.seek(0)
        _client(attempts=8).upload_fileobj(stream, bucket, key, Config=config)

    retried(uri, "write", upload)


def _endpoint() -> str | None:
    return next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)


def _client(attempts: int = 1) -> Any:
    key = (_endpoint(), attempts)
    with _lock:
        if key not in _clients:
            _clients[key] = _new_client(*key)
        return _clients[key]


def _forget(stale: Any) -> None:
    """Lets the credentials be read again: they may be new in a file or in variables."""
    with _lock:
        if stale in _clients.values():
            _clients.clear()


def _new_client(endpoint: str | None, attempts: int) -> Any:
    import boto3
    import botocore.session
    from botocore.config import Config

    if endpoint and "@" in endpoint:
        raise FlowmapsrError(
            "AWS_ENDPOINT_URL contains a user name or password; give only the address and use "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    # Servers other than AWS need the bucket in the path and lack the new checksums.
    checksums = "when_required" if endpoint else None
    config = Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=5,
        read_timeout=SILENCE,
        max_pool_connections=50,
        tcp_keepalive=True,
        s3={"addressing_style": "path"} if endpoint else None,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    try:
        core = botocore.session.Session()
        # Parsing unused dates takes half of the time of a listing.
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        session = boto3.Session(botocore_session=core)
        return session.client("s3", endpoint_url=endpoint, config=config)
    except (ValueError, exceptions.BotoCoreError) as error:
        raise FlowmapsrError(
            f"S3 cannot be set up ({redacted(str(error))}); check the AWS_* variables "
            "(AWS_ENDPOINT_URL looks like http://host:port)"
        ) from None


def _code(failure: Exception) -> str:
    if not isinstance(failure, exceptions.ClientError):
        return ""
    return str(failure.response.get("Error", {}).get("Code", ""))


def _is_expired(failure: Exception) -> bool:
    """Whether new credentials may help; a HEAD is answered by a status without a reason."""
    head = getattr(failure, "operation_name", "") == "HeadObject"
    return _code(failure) in _EXPIRED_CODES or (head and _code(failure) in ("400", "403"))


def _patience(failure: Exception) -> float:
    """Seconds for which to retry after this failure."""
    match failure:
        case exceptions.ClientError():
            status = failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            busy = (status >= 500 and status not in (501, 505, 507)) or status == 429
            return PATIENCE if busy or _code(failure) in _BUSY_CODES else 0.0
        case exceptions.EndpointConnectionError() | exceptions.ConnectTimeoutError():
            return PATIENCE if _endpoint() in _answered else min(PATIENCE, FIRST_CONTACT)
        case exceptions.HTTPClientError() | exceptions.IncompleteReadError():
            return PATIENCE
        case exceptions.BotoCoreError():  # a bad certificate, for example
            return 0.0
    return PATIENCE  # the answer cannot be parsed


def _explained(uri: str, action: str, failure: Exception) -> FlowmapsrError:
    if isinstance(failure, exceptions.ClientError):
        return _refusal(uri, action, failure)
    reason = redacted(str(failure))
    if isinstance(failure, exceptions.HTTPClientError | exceptions.IncompleteReadError):
        return FlowmapsrError(
            f"{uri}: cannot {action} it, S3 cannot be reached ({reason}); check AWS_ENDPOINT_URL "
            "and the network, then run the same command again"
        )
    return FlowmapsrError(
        f"{uri}: cannot {action} it ({reason}); check AWS_ENDPOINT_URL and the AWS_* credentials"
    )


def _clock(failure: exceptions.ClientError) -> str:
    """How this machine's differs from the server's, which writes the time into its answers."""
    theirs = failure.response["ResponseMetadata"]["HTTPHeaders"].get("date")
    if theirs is None:
        return "the server's is another"
    return f"{time.time() - parsedate_to_datetime(theirs).timestamp():+.0f} s from the server's"


def _refusal(uri: str, action: str, failure: exceptions.ClientError) -> FlowmapsrError:
    code = _code(failure)
    if code in ("404", "NoSuchKey", "NotFound"):
        return NotFoundError(f"{uri}: there is no such object ({code}); check the address")
    if code == "NoSuchBucket" and action != "write":
        return NotFoundError(f"{uri}: there is no such bucket ({code}); check the address")
    fix = _FIXES.get(code, "check the AWS_* variables and this account's permissions")
    if _patience(failure) > 0:
        fix = "the server stayed busy: run the same command again later"
    reason = redacted(f"{code}: {failure.response.get('Error', {}).get('Message', '')}")
    fix = fix.format(action=action, clock=_clock(failure))
    closed = code in _CLOSED and action in ("read", "list")
    refusal = ClosedObjectError if closed else S3Error
    return refusal(f"{uri}: S3 refused to {action} it ({reason}); {fix}", code)
