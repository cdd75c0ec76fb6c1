"""The names that a file's tensors have in `FlowMapNet`."""

from __future__ import annotations

import re
from collections.abc import Collection

from training.settings.model import ModelSettings

UNET = "unet."
FIRST_LAYER = "conv_in.weight"
SDXL_PREFIX = "model.diffusion_model."
SDXL_FIRST_LAYER = "input_blocks.0.0.weight"
WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
"""Parts of names that torch.compile, FSDP and activation checkpointing leave in a file."""


def network_names(
    theirs: Collection[str], model: ModelSettings, names: Collection[str]
) -> dict[str, str]:
    """The network's name -> the file's name.

    Whatever prefix the file has (`unet.`, `module.`, `model.diffusion_model.`, none), that of the
    network in it which fits `names` best is taken away.
    """
    plain = {WRAPPERS.sub("", name).removeprefix("."): name for name in theirs}
    best: dict[str, str] = {}
    for prefix in _prefixes(plain, FIRST_LAYER):
        mine = {UNET + name.removeprefix(prefix): name for name in plain if name.startswith(prefix)}
        best = max(best, {one: mine[one] for one in mine if one in names}, key=len)
    for prefix in _prefixes(plain, SDXL_FIRST_LAYER):
        mine = _sdxl_names([name for name in plain if name.startswith(prefix)], prefix, model)
        if len(mine.keys() & set(names)) > len(best):
            best = mine
    return {mine: plain[name] for mine, name in best.items()}


def _prefixes(names: Collection[str], first: str) -> list[str]:
    """What stands before the name of the first layer of each network, as `a.` or nothing."""
    ends = [name.removesuffix(first) for name in names if name.endswith(first)]
    return sorted(prefix for prefix in ends if not prefix or prefix.endswith("."))


def _sdxl_names(theirs: list[str], prefix: str, model: ModelSettings) -> dict[str, str]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    # It only moves values from name to name, so names in the values' place give the mapping.
    named = {SDXL_PREFIX + name.removeprefix(prefix): name for name in theirs}
    moved = convert_ldm_unet_checkpoint(named, {"layers_per_block": model.layers_per_block})
    return {UNET + mine: name for mine, name in moved.items()}
