"""Which source of a mixture each sample of a bucket comes from, dealt out exactly.

No draw: at every moment a source has given its share of the samples so far, to less than one
sample. It is a job of its own for each sample: the j-th of a source with share w must come after
sample (j - 1) / w and by sample j / w, and the earliest deadline goes first, which keeps them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

_ROUNDING = 1e-9
"""Of products of shares and counts."""


def deal(
    shares: Sequence[float], taken: Sequence[int], behind: Sequence[float], count: int
) -> Iterator[int]:
    """The sources of the next `count` samples of a bucket.

    Args:
        shares: of the sources, 1 together; a source of share 0 has no samples here.
        taken: samples that each has given so far.
        behind: by how many samples each is behind in all buckets together, which decides between
            equal deadlines.
    """
    given, owed, total = list(taken), list(behind), sum(taken)
    for number in range(total + 1, total + count + 1):
        owed = [one + share for one, share in zip(owed, shares, strict=True)]
        released = [s for s, share in enumerate(shares) if share * number - given[s] > _ROUNDING]
        source = min(
            released, key=lambda s: (math.ceil((given[s] + 1) / shares[s] - _ROUNDING), -owed[s])
        )
        given[source] += 1
        owed[source] -= 1
        yield source
