"""Workers are sized by what the cluster has, and a cluster that cannot hold one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from datagen.errors import FlowmapsrError
from datagen.settings import DatasetRecipe
from pipelines.cluster.dataset_workers import size_workers

GB = 1e9
CPU_NODE = {"CPU": 8.0, "memory": 64 * GB}
GPU_NODE = {"CPU": 32.0, "GPU": 4.0, "memory": 256 * GB}
VAE = {"kind": "autoencoder_kl", "source": "somewhere"}


def recipe(**settings: Any) -> DatasetRecipe:
    return DatasetRecipe.model_validate({"sources": ["/p"], "output": "/o", **settings})


def test_without_weights_every_cpu_is_a_worker() -> None:
    workers = size_workers(recipe(), [CPU_NODE, GPU_NODE])
    assert (workers.count, workers.cpus, workers.gpus, workers.device) == (40, 1, 0, "cpu")


def test_a_codec_with_weights_takes_the_gpus_and_shares_the_cpus_out() -> None:
    workers = size_workers(recipe(codec=VAE), [CPU_NODE, GPU_NODE])
    assert (workers.count, workers.cpus, workers.gpus, workers.device) == (4, 8, 1, "cuda")
    halves = size_workers(recipe(codec=VAE, gpus_per_worker=0.5), [GPU_NODE])
    assert (halves.count, halves.cpus, halves.gpus) == (8, 4, 0.5)
    assert size_workers(recipe(codec=VAE, gpus_per_worker=0), [GPU_NODE]).device == "cpu"
    assert size_workers(recipe(codec=VAE), [CPU_NODE]).device == "cpu"


def test_what_is_asked_for_is_an_upper_bound() -> None:
    assert size_workers(recipe(workers=3), [CPU_NODE]).count == 3
    assert size_workers(recipe(workers=30), [CPU_NODE]).count == 8
    assert size_workers(recipe(cpus_per_worker=3), [CPU_NODE, CPU_NODE]).count == 4


def test_memory_bounds_the_number() -> None:
    small = {"CPU": 8.0, "memory": 4 * GB}
    few = size_workers(recipe(), [small])
    assert few.count == int(4 * GB // few.memory) < 8
    more = size_workers(recipe(filters={"max_megapixels": 16}), [small])
    assert more.count > few.count


def test_a_cluster_that_cannot_hold_a_worker_is_named() -> None:
    with pytest.raises(FlowmapsrError, match="16 CPU.*the largest: 8 CPU"):
        size_workers(recipe(cpus_per_worker=16), [CPU_NODE])
    with pytest.raises(FlowmapsrError, match="2 GPU"):
        size_workers(recipe(codec=VAE, gpus_per_worker=2), [CPU_NODE])
    with pytest.raises(FlowmapsrError, match="has no node"):
        size_workers(recipe(), [])
