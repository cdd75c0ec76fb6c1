"""Redacts credentials in URIs, queries and settings."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=//)[^/\s@'\"]+@")
"""The userinfo part of a URI: a user, mostly with a password, or only a token."""
_QUERY = re.compile(
    r"(?i)(?:^|(?<=[?&;,\s'\"]))((?:[\w-]*(?:token|secret|password|passwd|signature|credential|"
    r"api[_-]?key|access[_-]?key)[\w-]*)=)[^&;\s'\"]+"
)


def redacted(text: str) -> str:
    """`text` with stars in place of what looks like a secret in an address or a setting."""
    return _QUERY.sub(r"\g<1>***", _USER.sub("***@", text))


def holds_secret(text: str) -> bool:
    return redacted(text) != text
