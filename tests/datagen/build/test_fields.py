"""What a recipe asks to be stored, and nothing else, is in every sample."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.dataset.records import DrawnSample
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import META, ShardSample, stored_latents
from datagen.degradation.apply import degrade, degrade_small
from datagen.review.inspect_sample import inspect_sample
from datagen.review.recompute import recompute_samples
from datagen.review.verify import verify_dataset
from datagen.samples import codecs
from datagen.samples.pixels import decode_pixels, lq_at_hq_size
from datagen.settings import DatasetRecipe

RecipeMaker = Callable[..., DatasetRecipe]


def _samples(recipe: DatasetRecipe) -> list[ShardSample]:
    shards = load_manifest(recipe.output).shards
    return [sample for one in shards for sample in read_shard(f"{recipe.output}/{one.path}")]


@pytest.mark.parametrize(
    ("settings", "members"),
    [
        ({"latents": ("lq", "hq")}, {"hq.jpg", "latents.safetensors"}),
        ({"hq_pixels": "none", "lq_pixels": "small"}, {"latents.safetensors", "lq.png"}),
        ({"latents": (), "hq_pixels": "png", "lq_pixels": "full"}, {"hq.png", "lq.png"}),
        ({"latents": (), "lq_pixels": "small"}, {"hq.jpg", "lq.png"}),
    ],
    ids=["no negatives", "latents and LQ", "lossless pixels", "pixels"],
)
def test_samples_hold_what_the_recipe_asks_for(
    recipe: RecipeMaker, settings: dict[str, object], members: set[str]
) -> None:
    asked = recipe(samples_per_shard=4, **settings)
    manifest = build_in_process(asked)
    for sample in _samples(asked):
        assert sample.members().keys() == members | {META}
        assert tuple(stored_latents(sample)) == asked.latents
    assert (manifest.codec is None) == (not asked.latents)
    assert bool(manifest.stats.latent.positions) == ("hq" in asked.latents)
    assert verify_dataset(asked.output) == []
    assert recompute_samples(asked.output) == ([], [])
    shown = inspect_sample(asked.output, _samples(asked)[0].key).images
    seen = set(asked.latents) | {"hq"} | ({"lq"} if asked.lq_pixels != "none" else set())
    assert shown.keys() == seen
    assert Image.open(Path(asked.output, "preview.png")).size[0] == 1200


def test_stored_pixels_are_those_the_latents_were_made_of(recipe: RecipeMaker) -> None:
    """To the last bit: the HQ as PNG, the small LQ, and the LQ at HQ size rounded to 8 bits."""
    samples = []
    for kind in ("small", "full"):
        output = str(Path(recipe().output, kind))
        asked = recipe(output=output, hq_pixels="png", lq_pixels=kind)
        build_in_process(asked)
        samples.append(_samples(asked))
    for small, full in zip(*samples, strict=True):
        drawn = DrawnSample.model_validate_json(small.meta)
        assert small.hq_image == full.hq_image and small.latents == full.latents
        hq = np.asarray(Image.open(io.BytesIO(small.hq_image or b"")))
        stored = {one: decode_pixels(one.lq_image or b"") for one in (small, full)}
        assert np.array_equal(stored[small], degrade_small(hq, drawn.lq))
        lq = degrade(hq, drawn.lq)
        assert np.array_equal(lq_at_hq_size(stored[small], drawn, "small"), lq)
        assert np.abs(lq_at_hq_size(stored[full], drawn, "full") - lq).max() <= 0.5001 / 255


def test_a_dataset_of_pixels_needs_no_codec(
    recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_codec(*_: object) -> None:
        raise AssertionError("a codec was loaded")

    monkeypatch.setattr(codecs, "load_codec", no_codec)
    asked = recipe(latents=(), lq_pixels="small")
    manifest = build_in_process(asked)
    assert manifest.codec is None and manifest.num_samples == len(_samples(asked))
    assert verify_dataset(asked.output) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latents": ("lq",), "hq_pixels": "none"}, "hq_pixels=none leave nothing of the HQ"),
        ({"latents": ("hq", "hq")}, "names one twice"),
        ({"latents": ("hq", "small")}, "'hq', 'lq' or 'neg'"),
        ({"hq_pixels": "webp"}, "'jpeg', 'png' or 'none'"),
    ],
)
def test_fields_that_make_no_sense_are_refused(
    recipe: RecipeMaker, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(**settings)
