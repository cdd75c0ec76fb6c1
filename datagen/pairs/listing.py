"""Lists what a recipe names: photos, and the HQ photos of pairs, each with its LQ."""

from __future__ import annotations

from dataclasses import replace

from datagen.errors import FlowmapsrError
from datagen.pairs.matching import match_pairs
from datagen.photos.source_file import SourceFile
from datagen.photos.sources import Found, Listing, list_sources, listing_of
from datagen.settings import DatasetRecipe


def list_photos(recipe: DatasetRecipe) -> Listing:
    """All photos but what the output holds; the stamp of a pair's HQ changes with its LQ too.

    Raises:
        FlowmapsrError: a source is missing or has no image file, a table of pairs is unusable, or
            one photo is named twice.
    """
    photos = list_sources(recipe.sources, exclude=recipe.output)
    found: list[Found] = [*photos.files, *photos.rejected, *photos.passed_over]
    taken = dict.fromkeys((file.uri for file in photos.files), "sources")
    lq_of: dict[str, SourceFile] = {}
    for number, pairs in enumerate(recipe.pairs):
        hq = list_sources([pairs.hq], exclude=recipe.output)
        lq = hq if pairs.lq == pairs.hq else list_sources([pairs.lq], exclude=recipe.output)
        for listing in [hq] if lq is hq else [hq, lq]:
            found += [*listing.rejected, *listing.passed_over]
        matched = match_pairs(pairs, hq=hq.files, lq=lq.files)
        found += matched.rejected
        for one, other in matched.pairs:
            for uri in (one.uri, other.uri):
                if before := taken.get(uri):
                    raise FlowmapsrError(
                        f"pairs.{number}: {uri} is in {before} too, and a photo can be used once: "
                        "leave it out of one of them, or build two datasets"
                    )
                taken[uri] = f"pairs.{number}"
            lq_of[one.uri] = other
            found.append(one._replace(stamp=f"{one.stamp} {other.bytes} {other.stamp}"))
    return replace(listing_of(found), lq=lq_of)
