"""Turns a request to S3 into its answer or a clear end: retried, with fresh credentials if need be.

The only module that knows boto3. Knows nothing of what the requests are for.
"""

from __future__ import annotations

import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

from datagen.errors import FlowmapsrError, NotFoundError

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

PRECONDITION_CODES = frozenset({"PreconditionFailed", "412"})
_MISSING_CODES = frozenset({"404", "NoSuchKey", "NotFound"})
_EXPIRED_CODES = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken",
     "TokenRefreshRequired"}
)  # fmt: skip
_BUSY_CODES = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded",
     "TooManyRequests", "RequestTimeout", "InternalError", "ServiceUnavailable", "IncompleteBody",
     "BadDigest", "OperationAborted", "ConditionalRequestConflict"}
)  # fmt: skip
_LASTING_STATUS = frozenset({501, 505, 507})
_FIXES = {
    "AccessDenied": "this account may not {action} there: give it permission or choose another "
    "place",
    "403": "this account may not {action} there: give it permission, check the AWS_* credentials "
    "or choose another place",
    "NoSuchBucket": "there is no such bucket: make it or correct the address",
    "InvalidBucketName": "correct the name of the bucket",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "set this machine's clock",
    "InvalidObjectState": "it is archived: restore it first",
    "QuotaExceeded": "raise the quota there or choose another place",
    "XMinioStorageFull": "free some space there or choose another place",
    "NotImplemented": "this server lacks what is needed: use one with conditional puts",
}  # fmt: skip
_EXPIRED_FIX = "the credentials have expired: renew them and run the same command again"
_OTHER_FIX = "check the AWS_* variables and this account's permissions"
_SECRETS = re.compile(r"(?<=//)[^/@\s]+@|(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"]+")


class S3Refused(FlowmapsrError):
    """The server answered no; `code` is its own word for why."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[S3Refused], tuple[str, str]]:
        return S3Refused, (str(self), self.code)


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
    for credentials once more if they have expired. Raises NotFoundError, S3Refused or, when nothing
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
            f"S3 cannot be set up ({_redacted(str(error))}); check the AWS_* variables "
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
    return _code(failure) in _EXPIRED_CODES or (head and _code(failure) in ("400", "403"))


def _patience(failure: Exception) -> float:
    """Seconds for which it makes sense to repeat what failed like this."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    match failure:
        case exceptions.ClientError():
            status = failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            busy = (status >= 500 and status not in _LASTING_STATUS) or status == 429
            return PATIENCE if busy or _code(failure) in _BUSY_CODES else 0.0
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

    reason = _redacted(str(failure))
    if isinstance(failure, ClientError):
        return _refusal(uri, action, failure)
    if isinstance(failure, HTTPClientError | IncompleteReadError):
        return FlowmapsrError(
            f"{uri}: cannot {action} it, S3 cannot be reached ({reason}); check AWS_ENDPOINT_URL "
            "and the network, then run the same command again"
        )
    return FlowmapsrError(
        f"{uri}: cannot {action} it ({reason}); check AWS_ENDPOINT_URL and the AWS_* credentials"
    )


def _refusal(uri: str, action: str, failure: Any) -> FlowmapsrError:
    code = _code(failure)
    if code in _MISSING_CODES:
        return NotFoundError(f"{uri}: there is no such object ({code}); check the address")
    if code == "NoSuchBucket" and action != "write":
        return NotFoundError(f"{uri}: there is no such bucket ({code}); check the address")
    if _patience(failure) > 0:
        fix = "it stayed busy for long: run the same command again later"
    elif code in _EXPIRED_CODES:
        fix = _EXPIRED_FIX
    else:
        fix = _FIXES.get(code, _OTHER_FIX).format(action=action)
    told = failure.response.get("Error", {}).get("Message", "")
    return S3Refused(
        f"{uri}: S3 refused to {action} it ({_redacted(f'{code}: {told}')}); {fix}", code
    )


def _redacted(text: str) -> str:
    return _SECRETS.sub(lambda found: f"{found[1] or ''}***" if found[1] else "", text)
