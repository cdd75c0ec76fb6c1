"""Maps error codes of S3-compatible servers to errors that name the fix and contain no secret."""

from __future__ import annotations

from datagen.errors import FlowmapsrError, NotFoundError
from datagen.io.redaction import redacted

PRECONDITION_CODES = frozenset({"PreconditionFailed", "412"})
_MISSING_CODES = frozenset({"404", "NoSuchKey", "NotFound"})
EXPIRED_CODES = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken",
     "TokenRefreshRequired"}
)  # fmt: skip
BUSY_CODES = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded",
     "TooManyRequests", "RequestTimeout", "InternalError", "ServiceUnavailable", "IncompleteBody",
     "BadDigest", "OperationAborted", "ConditionalRequestConflict"}
)  # fmt: skip
_FIXES = {
    "AccessDenied": "this account may not {action} there: give it permission or choose another "
    "location",
    "403": "this account may not {action} there: give it permission, check the AWS_* credentials "
    "or choose another location",
    "NoSuchBucket": "there is no such bucket: create it or correct the address",
    "InvalidBucketName": "correct the name of the bucket",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "set this machine's clock",
    "InvalidObjectState": "it is archived: restore it first",
    "QuotaExceeded": "raise the quota there or choose another location",
    "XMinioStorageFull": "free some space there or choose another location",
    "NotImplemented": "this server lacks what is needed: use one with conditional puts",
}  # fmt: skip
_EXPIRED_FIX = "the credentials have expired: renew them and run the same command again"
_OTHER_FIX = "check the AWS_* variables and this account's permissions"


class S3Error(FlowmapsrError):
    """The server refused a request; `code` is its error code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[S3Error], tuple[str, str]]:
        return S3Error, (str(self), self.code)


def s3_error(uri: str, action: str, *, code: str, message: str, busy: bool) -> FlowmapsrError:
    """The error for a refusal to `action` what is at `uri`; `message` is the server's."""
    if code in _MISSING_CODES:
        return NotFoundError(f"{uri}: there is no such object ({code}); check the address")
    if code == "NoSuchBucket" and action != "write":
        return NotFoundError(f"{uri}: there is no such bucket ({code}); check the address")
    if busy:
        fix = "the server stayed busy: run the same command again later"
    elif code in EXPIRED_CODES:
        fix = _EXPIRED_FIX
    else:
        fix = _FIXES.get(code, _OTHER_FIX).format(action=action)
    reason = redacted(f"{code}: {message}")
    return S3Error(f"{uri}: S3 refused to {action} it ({reason}); {fix}", code)
