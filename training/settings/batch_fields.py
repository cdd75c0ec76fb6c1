"""What the batches of a stage hold, which its dataset must store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datagen.settings import LATENT_NAMES, DatasetRecipe, LatentName


@dataclass(frozen=True)
class BatchFields:
    latents: tuple[LatentName, ...] = ("hq", "lq")
    hq_pixels: bool = False
    lq_pixels: Literal["none", "stored", "fresh"] = "none"
    """`stored` is made of the HQ pixels, by what was drawn for the sample, where the dataset has no
    LQ pixels; `fresh` is made of them by new draws."""

    @classmethod
    def stored(cls, recipe: DatasetRecipe) -> BatchFields:
        """All that a dataset has; an LQ in any case, if only as pixels."""
        has_lq = recipe.lq_pixels != "none" or "lq" not in recipe.latents
        return cls(recipe.latents, recipe.hq_pixels != "none", "stored" if has_lq else "none")

    @classmethod
    def stored_by_all(cls, recipes: Sequence[DatasetRecipe]) -> BatchFields:
        """What each of some datasets has."""
        stored = [cls.stored(recipe) for recipe in recipes]
        return cls(
            tuple(name for name in LATENT_NAMES if all(name in one.latents for one in stored)),
            all(one.hq_pixels for one in stored),
            "stored" if any(one.lq_pixels == "stored" for one in stored) else "none",
        )
