"""What the engine patches or reads in DeepSpeed is still there, in the version it was checked with.

A failure here means: read training/engine/deepspeed_patches.py and zero_layout.py against the new
version, run tests/training/engine and tests/training/checkpoints, then raise CHECKED_VERSION.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest

from training.engine.deepspeed_patches import (
    CHECKED_VERSION,
    import_deepspeed,
    params_to_release_cache,
)

READ_BY_NAME = {
    "runtime.fp16.unfused_optimizer": ("fp16_groups", "fp32_groups", "refresh_fp32_params"),
    "runtime.zero.stage_1_and_2": ("_hp_mapping", "update_lp_params"),
    "utils.groups": ("_WORLD_GROUP = dist.new_group(ranks=range(dist.get_world_size()))",),
    "utils.tensor_fragment": (
        "param_group_index",
        "lp_fragment_address",
        "hp_fragment_address",
        "start",
        "numel",
    ),
    "runtime.zero.stage3": (
        *("grad_position", "get_param_id", "_get_param_partition_rank", "empty_partition_cache"),
        *("fp32_partitioned_groups_flat", "_reassign_or_swap_out_partitioned_parameters"),
        "persistent_parameters",
    ),
    "runtime.zero.partition_parameters": ("linear_bk", "ds_numel", "GatheredParameters"),
}


@pytest.fixture(scope="module")
def deepspeed() -> Any:
    return import_deepspeed()


def test_deepspeed_has_the_checked_minor_version() -> None:
    assert version("deepspeed").startswith(f"{CHECKED_VERSION}.")


@pytest.mark.parametrize("module", READ_BY_NAME)
def test_deepspeed_has_the_attributes_read_by_name(deepspeed: Any, module: str) -> None:
    source = inspect.getsource(import_module(f"{deepspeed.__name__}.{module}"))
    assert [name for name in READ_BY_NAME[module] if name not in source] == []


def test_deepspeed_has_the_functions_that_are_replaced(deepspeed: Any) -> None:
    from deepspeed.runtime import compiler
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.muon import original_muon

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    assert "@compiler.compile" in inspect.getsource(original_muon)
    assert compiler.compile.__module__ == compiler.__name__, "the no-op was left in its place"
    assert isinstance(parameter_offload.FWD_MODULE_STACK, list)
    assert callable(params_to_release_cache().cache_clear)
