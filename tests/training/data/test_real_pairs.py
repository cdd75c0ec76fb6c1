"""Training on real pairs: their LQ is read as it is stored, and no stage may make another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import open_dataset
from datagen.dataset.records import DrawnSample
from datagen.dataset.shard_index import read_shard
from datagen.degradation.apply import small_size
from datagen.errors import FlowmapsrError
from datagen.samples.codecs import load_codec
from datagen.samples.pixels import decode_pixels
from datagen.settings import DatasetRecipe
from tests.support.pair_pictures import pairs_of, write_pair
from tests.support.tiny import WARMUP, RunMaker
from training.data.held_out import held_out_groups, held_out_reader
from training.data.shard_store import ShardStore
from training.preflight import check_run
from training.settings.recipe import TrainingRecipe
from training.validation.samples import read_group

STORED = [{"latents": ("hq", "lq")}, {"latents": (), "lq_pixels": "full"}]


def _pairs(folder: Path, **fields: object) -> DatasetRecipe:
    """A dataset of two pairs, one of them held out."""
    (folder / "pairs").mkdir()
    for number in range(2):
        write_pair(folder / "pairs", number)
    values = {"pairs": pairs_of(folder / "pairs"), "output": str(folder / "dataset")}
    sizes = {"buckets": {"budgets": [{"side": 96}], "max_aspect_ratio": 1}, "crop": "native"}
    recipe = DatasetRecipe.model_validate({**values, **sizes, "hq_pixels": "png", **fields})
    build_in_process(recipe)
    return recipe


@pytest.mark.parametrize("fields", [*STORED, {**STORED[1], **STORED[0]}])
def test_held_out_pairs_are_compared_with_their_stored_lq(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    recipe = _pairs(tmp_path, validation_fraction=1.0, samples_per_photo=2, **fields)
    dataset = open_dataset(recipe.output)
    reader = held_out_reader([ShardStore(dataset.root)], [dataset], 4)
    planned = held_out_groups([dataset.manifest], 4)[0]
    codec = load_codec(recipe.codec)
    group = read_group(reader, planned, 0, codec=codec, device=torch.device("cpu"))
    shards = [read_shard(f"{dataset.root}/{one.path}") for one in dataset.manifest.shards]
    samples = {sample.key: sample for shard in shards for sample in shard}
    for row, key in enumerate(group.batch.keys):
        drawn = DrawnSample.model_validate_json(samples[key].meta)
        assert group.small[row].shape[1::-1] == small_size((96, 96), drawn.scale)
        assert group.scales[row] == 4
        stored = samples[key].lq_image
        if stored is not None:
            lq = decode_pixels(stored)
            assert np.array_equal(group.bicubic[row].permute(1, 2, 0).numpy(), lq)
        blurred = (group.bicubic[row].float() - group.originals[row].float()).abs().mean()
        assert 0.5 < blurred < 6  # the same part of the scene, through a lens


ELIR = {
    "name": "elir",
    "objective": {"kind": "latent_consistency"},
    "steps": 10,
    "global_batch": 2,
    "dynamic_weighting": False,
}


@pytest.mark.parametrize(
    ("model", "stage", "words"),
    [
        (None, {**WARMUP, "degradation": "fresh"}, "stage 'warmup': degradation=fresh .*=stored"),
        ("elir", {**ELIR, "degradation": "fresh"}, "stage 'elir': degradation=fresh .*=stored"),
        ("elir", ELIR, "trains on LQ pixels.*build it with lq_pixels=full"),
    ],
)
def test_stages_that_need_another_lq_are_refused_before_anything_trains(
    run_recipe: RunMaker, tmp_path: Path, model: str | None, stage: dict[str, object], words: str
) -> None:
    dataset = _pairs(tmp_path, latents=("hq", "lq"))
    values = run_recipe(tmp_path / "run", stages=[WARMUP]).model_dump()
    values |= {"manifest": dataset.output, "stages": [stage]}
    values |= {} if model is None else {"model": {"kind": model}}
    with pytest.raises(FlowmapsrError, match=words):
        check_run(TrainingRecipe.model_validate(values))
