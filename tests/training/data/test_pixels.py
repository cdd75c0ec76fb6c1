"""Batches of pixels for systems that train on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import open_dataset
from datagen.dataset.records import DrawnSample
from datagen.degradation.apply import degrade
from datagen.errors import FlowmapsrError
from datagen.settings import LatentName
from tests.support.launch import start_workers
from tests.support.mlflow_runs import mlflow_names
from tests.support.tiny import DISTILL, WARMUP, RunMaker, dataset_recipe, write_photos
from training.data.bucket_mix import bucket_sizes, proportional_shares
from training.data.fresh_degradation import FreshDegradation
from training.data.held_out import held_out_groups, held_out_reader
from training.data.loader import Batch, BatchLoader, BatchReader, Source
from training.data.planned import Position
from training.data.schedule import Schedule
from training.data.shard_store import ShardStore
from training.preflight import check_run
from training.settings.batch_fields import BatchFields
from training.settings.stage import BatchSize

PIXELS = BatchFields(latents=(), hq_pixels=True, lq_pixels="stored")


def _dataset(
    folder: Path,
    *,
    latents: tuple[LatentName, ...] = (),
    hq: Literal["jpeg", "png", "none"] = "png",
    lq: Literal["none", "small", "full"] = "small",
) -> Path:
    asked = dataset_recipe(write_photos(folder / "photos", 3), folder / "dataset")
    fields = {"latents": latents, "hq_pixels": hq, "lq_pixels": lq}
    build_in_process(asked.model_copy(update=fields))
    return folder / "dataset"


@pytest.mark.parametrize("stored", ["small", "full"])
def test_a_batch_holds_the_lq_that_the_builder_made(
    tmp_path: Path, stored: Literal["small", "full"]
) -> None:
    folder = _dataset(tmp_path, lq=stored)
    manifest = open_dataset(str(folder)).manifest
    draws = proportional_shares(bucket_sizes(manifest, "train"), BatchSize(4, 4))
    schedule = Schedule([manifest], draws, seed=3, shuffle_window_shards=2, split="train")
    store = ShardStore(str(folder))
    reader = BatchReader([Source(store, stored)], schedule, manifest.codec, PIXELS)
    loader = BatchLoader(reader, rank=0, world_size=1, threads=2)
    for batch in itertools.islice(loader.batches(Position()), 3):
        assert not batch.latents and batch.hq_pixels is not None and batch.lq_pixels is not None
        assert batch.lq_pixels.dtype == torch.float32
        for hq, lq, meta in zip(batch.hq_pixels, batch.lq_pixels, batch.meta, strict=True):
            drawn = DrawnSample.model_validate_json(meta)
            expected = degrade(hq.permute(1, 2, 0).numpy(), drawn.lq)
            difference = np.abs(lq.permute(1, 2, 0).numpy() - expected).max()
            assert difference == 0 if stored == "small" else difference <= 0.5001 / 255


def test_held_out_samples_have_all_that_is_stored(tmp_path: Path) -> None:
    folder = _dataset(tmp_path, latents=("hq", "lq"), hq="none")
    dataset = open_dataset(str(folder))
    reader = held_out_reader([ShardStore(str(folder))], [dataset], 2)
    batch = reader.read(held_out_groups([dataset.manifest], 2)[0]).to(torch.device("cpu"))
    assert batch.latents.keys() == {"hq", "lq"} and batch.hq.shape == batch.lq.shape
    assert batch.hq_pixels is None and batch.lq_pixels is not None


GUIDED = {
    **WARMUP,
    "name": "guidance",
    "objective": {"kind": "flow_matching", "guidance": {"strength": [2, 2]}},
}


@pytest.mark.parametrize(
    ("latents", "hq", "stage", "words"),
    [
        (("hq", "lq"), "jpeg", GUIDED, r"guidance needs negatives.*latents=\[hq,lq,neg\], or rem"),
        (("hq", "lq"), "none", DISTILL, "perceptual needs HQ pixels.*hq_pixels=jpeg, or set"),
        ((), "jpeg", WARMUP, r"latents of hq and lq.*stores latents=\[\].*latents=\[hq,lq\]"),
    ],
    ids=["negatives", "pixels", "latents"],
)
def test_a_dataset_without_what_a_stage_needs_is_refused_before_any_stage_trains(
    run_recipe: RunMaker,
    tmp_path: Path,
    latents: tuple[LatentName, ...],
    hq: Literal["jpeg", "none"],
    stage: dict[str, object],
    words: str,
) -> None:
    folder = _dataset(tmp_path, latents=latents, hq=hq)
    recipe = run_recipe(tmp_path / "run", stages=[WARMUP, stage] if stage != WARMUP else [WARMUP])
    recipe = recipe.model_copy(update={"manifest": str(folder)})
    with pytest.raises(FlowmapsrError, match=words) as caught:
        check_run(recipe)
    assert f"stage {stage['name']!r}" in str(caught.value)


START = Position()
FRESH = BatchFields(latents=(), hq_pixels=True, lq_pixels="fresh")


def _fresh(
    folder: Path, count: int, *, start: Position = START, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    """The first micro batches of a worker from a position on, in steps of two samples."""
    manifest, root = open_dataset(str(folder))
    draws = proportional_shares(bucket_sizes(manifest, "train"), BatchSize(2, 2 // world_size))
    schedule = Schedule([manifest], draws, seed=3, shuffle_window_shards=2, split="train")
    fresh = FreshDegradation(manifest.dataset_recipe(root).degradation, seed=3)
    reader = BatchReader([Source(ShardStore(root), fresh=fresh)], schedule, manifest.codec, FRESH)
    loader = BatchLoader(reader, rank=rank, world_size=world_size, threads=2)
    batches = loader.batches(start)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def _by_epoch(batches: Iterable[Batch]) -> list[dict[str, torch.Tensor]]:
    """The LQ of each sample, in each epoch."""
    epochs: list[dict[str, torch.Tensor]] = []
    for batch in batches:
        assert batch.lq_pixels is not None
        for key, lq in zip(batch.keys, batch.lq_pixels, strict=True):
            seen = next((one for one in epochs if key not in one), None)
            if seen is None:
                epochs.append(seen := {})
            seen[key] = lq
    return epochs


def test_fresh_degradations_differ_by_epoch_and_are_the_same_for_any_workers_and_after_a_resume(
    tmp_path: Path,
) -> None:
    folder = _dataset(tmp_path, lq="none")
    samples = open_dataset(str(folder)).manifest.num_samples
    steps = samples  # two epochs of steps of two
    alone = _fresh(folder, steps)
    assert all(batch.degrade_seconds > 0 for batch in alone)
    first, second = _by_epoch(alone)
    assert first.keys() == second.keys() and len(first) == samples
    assert not any(torch.equal(first[key], second[key]) for key in first)

    workers = [_fresh(folder, steps, rank=rank, world_size=2) for rank in (0, 1)]
    together = _by_epoch(itertools.chain(*zip(*workers, strict=True)))
    for found, expected in zip(together, (first, second), strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    half = steps // 2
    resumed = _fresh(folder, half, start=alone[half - 1].position)
    for one, two in zip(resumed, alone[half:], strict=True):
        assert one.keys == two.keys and one.lq_pixels is not None and two.lq_pixels is not None
        assert torch.equal(one.lq_pixels, two.lq_pixels)


def test_a_training_degrades_anew_what_has_no_stored_lq(
    run_recipe: RunMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _dataset(tmp_path, latents=("hq",), hq="jpeg", lq="none")
    stage = {**WARMUP, "steps": 20, "validate_every_steps": 10, "degradation": "fresh"}
    recipe = run_recipe(tmp_path / "run", stages=[stage])
    recipe = recipe.model_copy(update={"manifest": str(folder), "workers": 1})
    check_run(recipe)
    check_run(recipe)
    assert len([one for one in caplog.records if "has JPEG's loss" in one.getMessage()]) == 1
    process = start_workers(recipe, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    child = client.get_run(mlflow_names(recipe.output).stages["warmup"])
    assert child.data.metrics["data/degrade_seconds"] > 0
    assert child.data.metrics["loss/fm"] > 0
