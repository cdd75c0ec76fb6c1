"""Keeps secrets out of what is shown and sent: passwords in addresses, keys in queries.

Knows only text.
"""

from __future__ import annotations

import re

HIDDEN = "***"

_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
"""What stands before the host: a user, mostly with a password, or a token alone."""
_QUERY = re.compile(
    r"(?i)(?:^|(?<=[?&;\s]))((?:[\w-]*(?:token|secret|password|passwd|signature|credential|api[_-]?key|"
    r"access[_-]?key)[\w-]*)=)[^&;\s'\"]+"
)


def redacted(text: str) -> str:
    """`text` with what looks like a secret in an address or in a setting replaced by stars."""
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def holds_secret(text: str) -> bool:
    return redacted(text) != text
