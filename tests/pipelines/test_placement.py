from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from datagen.errors import FlowmapsrError
from pipelines.network import interface_of
from pipelines.placement import Placement, place_workers
from training.settings import TrainingRecipe

CPU_NODE, GPU_NODE = {"CPU": 8.0, "memory": 1e9}, {"CPU": 16.0, "GPU": 4.0}


def _recipe(**changes: Any) -> TrainingRecipe:
    stage = {"name": "warmup", "objective": {"kind": "flow_matching"}, "steps": 1}
    sizes = {"global_batch": 24, "micro_batch": 2}
    fields = {"manifest": "/m", "output": "/run", "stages": [{**stage, **sizes}], **changes}
    return TrainingRecipe.model_validate(fields)


def test_workers_take_a_gpu_each_where_there_are_some() -> None:
    placed = place_workers(_recipe(workers=4, cpus_per_worker=3), [CPU_NODE, GPU_NODE])
    assert placed == Placement(4, 4, cpus=3, gpus=1.0, strategy="PACK")
    assert placed.resources == {"CPU": 3.0, "GPU": 1.0}
    on_cpu = place_workers(_recipe(workers=4, gpus_per_worker=0, placement="spread"), [GPU_NODE])
    assert (on_cpu.resources, on_cpu.strategy) == ({"CPU": 1.0}, "SPREAD")


def test_a_range_is_placed_while_there_is_room_for_the_least() -> None:
    recipe = _recipe(workers={"min": 2, "max": 4}, cpus_per_worker=4)
    placed = place_workers(recipe, [CPU_NODE])
    assert (placed.least, placed.most) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": 6}, "6 workers of 1 CPU and 1 GPU.*room for 4.*2 nodes: 8 CPU and 0 GPU; 16"),
        ({"cpus_per_worker": 17}, "1 worker of 17 CPU and 1 GPU.*room for 0"),
        ({"workers": {"min": 6, "max": 12}}, "6 workers.*room for 4"),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused_with_what_it_has(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(FlowmapsrError, match=words):
        place_workers(_recipe(**changes), [CPU_NODE, GPU_NODE])


def test_waiting_workers_are_explained() -> None:
    placed = place_workers(_recipe(workers=2), [GPU_NODE])
    busy = placed.waiting({"CPU": 9.0, "GPU": 1.0}, [GPU_NODE])
    assert busy == "starting 2 workers of 1 CPU and 1 GPU; now GPU 1 of 4 free"
    assert placed.waiting(GPU_NODE, [GPU_NODE]) == "starting 2 workers of 1 CPU and 1 GPU"


def test_the_largest_size_of_a_range_must_share_the_global_batch() -> None:
    assert _recipe(workers={"min": 5, "max": 6}).least_workers == 5
    with pytest.raises(ValidationError, match="micro_batch 2 x workers 5 = 10"):
        _recipe(workers={"min": 1, "max": 5})
    with pytest.raises(ValidationError, match="min 3 is larger than max 2"):
        _recipe(workers={"min": 3, "max": 2})


def test_the_number_of_workers_is_no_part_of_the_digest() -> None:
    assert _recipe(workers=2).digest() == _recipe(workers=3, placement="spread").digest()
    assert _recipe(seed=1).digest() != _recipe(seed=2).digest()


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
