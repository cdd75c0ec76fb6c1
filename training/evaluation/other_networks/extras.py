"""The packages that baselines with a network need, none of which comes with flowmapsr."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from datagen.errors import FlowmapsrError
from training.settings.evaluation import Baseline

EXTRAS = ("spandrel", "ncnn")
"""Kinds of baselines that need the package, and the extra, of the same name."""


def require_extras(baselines: Sequence[Baseline]) -> None:
    """Before any work is done.

    Raises:
        FlowmapsrError: a package is not installed.
    """
    for one in baselines:
        if one.kind in EXTRAS and find_spec(one.kind) is None:
            raise FlowmapsrError(
                f"baseline {one.name} needs the package {one.kind}: "
                f"pip install 'flowmapsr[{one.kind}]'"
            )
