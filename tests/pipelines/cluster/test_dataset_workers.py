"""Workers of a build fit the cluster, and a cluster on which none fits is refused."""

from __future__ import annotations

from typing import Any

import pytest

from datagen.errors import FlowmapsrError
from datagen.settings import DatasetRecipe
from pipelines.cluster.workers import plan_workers

GB = 1e9
CPU_NODE = {"CPU": 8.0, "memory": 64 * GB}
GPU_NODE = {"CPU": 32.0, "GPU": 4.0, "memory": 256 * GB}
VAE = {"kind": "autoencoder_kl", "source": "somewhere"}


def recipe(**settings: Any) -> DatasetRecipe:
    return DatasetRecipe.model_validate({"sources": ["/p"], "output": "/o", **settings})


def test_without_weights_every_cpu_is_a_worker() -> None:
    workers = plan_workers(recipe(), [CPU_NODE, GPU_NODE])
    each = workers.each
    assert (workers.count, each.cpus, each.gpus, workers.device) == (
        40,
        1,
        0,
        "cpu",
    )


def test_a_codec_with_weights_takes_the_gpus_and_divides_the_cpus() -> None:
    workers = plan_workers(recipe(codec=VAE), [CPU_NODE, GPU_NODE])
    each = workers.each
    assert (workers.count, each.cpus, each.gpus, workers.device) == (
        4,
        8,
        1,
        "cuda",
    )
    halves = plan_workers(recipe(codec=VAE, gpus_per_worker=0.5), [GPU_NODE])
    assert (halves.count, halves.each.cpus, halves.each.gpus) == (8, 4, 0.5)
    assert plan_workers(recipe(codec=VAE, gpus_per_worker=0), [GPU_NODE]).device == "cpu"
    assert plan_workers(recipe(codec=VAE), [CPU_NODE]).device == "cpu"


def test_a_given_number_is_an_upper_bound() -> None:
    assert plan_workers(recipe(workers=3), [CPU_NODE]).count == 3
    assert plan_workers(recipe(workers=30), [CPU_NODE]).count == 8
    assert plan_workers(recipe(cpus_per_worker=3), [CPU_NODE, CPU_NODE]).count == 4


def test_memory_bounds_the_number() -> None:
    small = {"CPU": 8.0, "memory": 4 * GB}
    few = plan_workers(recipe(), [small])
    assert few.count == int(4 * GB // few.each.memory) < 8
    more = plan_workers(recipe(filters={"max_megapixels": 16}), [small])
    assert more.count > few.count


def test_a_cluster_on_which_no_worker_fits_is_refused_with_its_nodes() -> None:
    with pytest.raises(FlowmapsrError, match="16 CPU.*1 node: 1 x .8 CPU, 64.0 GB"):
        plan_workers(recipe(cpus_per_worker=16), [CPU_NODE])
    with pytest.raises(FlowmapsrError, match="2 GPU"):
        plan_workers(recipe(codec=VAE, gpus_per_worker=2), [CPU_NODE])
    with pytest.raises(FlowmapsrError, match="0 nodes: none"):
        plan_workers(recipe(), [])
