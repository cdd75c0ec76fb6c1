"""What the batches of a stage hold, which its dataset must store."""

from __future__ import annotations

from dataclasses import dataclass

from datagen.settings import DatasetRecipe, LatentName


@dataclass(frozen=True)
class BatchFields:
    latents: tuple[LatentName, ...] = ("hq", "lq")
    hq_pixels: bool = False
    lq_pixels: bool = False

    @classmethod
    def stored(cls, recipe: DatasetRecipe) -> BatchFields:
        """All that a dataset has."""
        return cls(recipe.latents, recipe.hq_pixels != "none", recipe.lq_pixels != "none")
