"""Maps a plain function over chunks on the connected Ray cluster, results in order.

Ray itself retries a chunk whose worker dies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from datagen.errors import FlowmapsrError
from datagen.io.prefetch import in_order

C = TypeVar("C")
R = TypeVar("R")

_WORTHWHILE = 8
"""Fewer chunks are done in this process before Ray has started workers for them."""
_AHEAD = 2
"""Submitted chunks for each CPU of the cluster: bounds the memory of waiting results."""


def map_chunks_on_cluster(
    function: Callable[[Sequence[C]], list[R]], chunks: Iterable[Sequence[C]]
) -> Iterator[list[R]]:
    """`map(function, chunks)`, on the cluster where there are enough chunks.

    `function` must be picklable. Raises what it raises.
    """
    iterator = iter(chunks)
    first = list(islice(iterator, _WORTHWHILE))
    if len(first) < _WORTHWHILE:
        return map(function, first)
    call: Any = ray.remote(num_cpus=1)(lambda chunk: function(chunk))
    most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    rest = chain(first, iterator)
    return in_order(rest, call.remote, _result, ahead=most - 1)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, FlowmapsrError):
            raise error.cause from error
        raise
