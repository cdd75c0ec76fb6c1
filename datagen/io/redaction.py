"""Redacts credentials in URIs, queries and settings, and takes them out of addresses."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

_USER = re.compile(
    r"(?<=//)(?:[^/\s'\"]+|[^/\s:'\"]+:(?!\d+(?:[/?#]|$))[^\s'\"]*)@",
)
"""The userinfo part of a URI: a user, mostly with a password, or only a token. A password may hold
an @ and even a slash, which a port does not begin with."""
_QUERY = re.compile(
    r"(?i)(?:^|(?<=[?&;,\s'\"]))((?:[\w-]*(?:token|secret|password|passwd|signature|credential|"
    r"api[_-]?key|access[_-]?key)[\w-]*)=)[^&;\s'\"]+"
)


def redacted(text: str) -> str:
    """`text` with stars in place of what looks like a secret in an address or a setting."""
    return _QUERY.sub(r"\g<1>***", _USER.sub("***@", text))


def holds_secret(text: str) -> bool:
    return redacted(text) != text


def split_user(uri: str) -> tuple[str, str, str]:
    """An address without its user and password, then both of them, empty where it has none."""
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return uri, "", ""
    name, _, password = user.partition(":")
    return parts._replace(netloc=host).geturl(), unquote(name), unquote(password)
