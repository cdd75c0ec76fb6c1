"""Random generators that depend on what they are for, never on what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends only on `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
