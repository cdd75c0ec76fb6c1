"""Settings of a mixture of datasets."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from datagen.records import Execution, Location, Settings


class SourceSettings(Settings):
    """One dataset of a mixture."""

    uri: Execution[Location] = Field(examples=["/path/to/dataset"])
    """Like `manifest`."""
    weight: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Its part of the samples, over the sum of all weights: 3 and 1 give three quarters and one.
    Null for all sources takes each sample of all of them equally often."""


def check_sources(manifest: str, sources: Sequence[SourceSettings]) -> None:
    """Raises ValueError for weights by which nothing can be dealt out, with the fix."""
    if not sources:
        return
    if manifest != sources[0].uri:
        raise ValueError(
            f"manifest={manifest} is not the first of sources, {sources[0].uri}: leave manifest "
            "out, and add its dataset to sources if it is to be trained on too"
        )
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and not any(weights):
        raise ValueError(
            f"sources: the weights {', '.join(f'{weight:g}' for weight in weights)} sum to "
            "nothing, so no source would give a sample: raise at least one, and leave out the "
            "sources that are not to be trained on"
        )
    for index, source in enumerate(sources):
        if source.weight is None and weights:
            raise ValueError(
                f"sources.{index}.weight: {source.uri} has none, and other sources have one: give "
                "all of them a weight, or none to take each sample equally often"
            )
        if source.weight == 0:
            raise ValueError(
                f"sources.{index}.weight is 0: {source.uri} would give no sample; leave it out of "
                "sources, or raise its weight"
            )
