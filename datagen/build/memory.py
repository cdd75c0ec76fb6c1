"""The most memory a worker needs, estimated from its recipe.

`tests/datagen/build/test_memory.py` compares it with what a worker uses.
"""

from __future__ import annotations

from datagen.degradation.settings import largest_image
from datagen.photos.decoding_memory import RESERVED_BYTES
from datagen.settings import DatasetRecipe

_LIBRARIES = 700_000_000
"""Python, torch, OpenCV, diffusers and the codec's tables, bytes."""
_BYTES_MAKING = 110
"""For each pixel of the largest image while a sample is degraded: float32 copies of HQ, LQ and
negative."""
_BYTES_WAITING = 40
"""For each pixel of a sample that waits for the codec: three float32 images and a JPEG."""
_BYTES_ENCODING = {"dct8": 120, "dct4": 120, "autoencoder_tiny": 1_200, "autoencoder_kl": 6_000}
"""For each pixel of a sample inside the codec on a CPU."""


def worker_memory(recipe: DatasetRecipe, *, threads: int) -> int:
    """Most memory of a worker with that many threads, bytes.

    Each thread holds one photo, or both of a pair, and one sample; `threads + 2` samples wait for
    the codec, and two batches are inside it or on their way out.
    """
    photo = recipe.filters.max_megapixels * 1e6 * (2 if recipe.pairs else 1)
    sample = max(budget.side for budget in recipe.buckets.budgets) ** 2
    degraded = sample * largest_image(recipe.degradation)
    waiting = threads + 2 + 2 * recipe.codec.batch
    return int(
        _LIBRARIES
        + threads * (photo * RESERVED_BYTES + degraded * _BYTES_MAKING)
        + waiting * sample * _BYTES_WAITING
        + recipe.codec.batch * sample * _BYTES_ENCODING[recipe.codec.kind]
    )
