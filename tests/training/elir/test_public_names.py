"""Weights under their published names: there and back, expanded and collapsed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from datagen.errors import FlowmapsrError
from tests.training.elir.small_networks import CHANNELS, double, pixels, small_networks
from training.elir.collapsible import CollapsibleConv, collapse
from training.elir.network import Networks
from training.elir.public_names import load_public, public_size, public_state
from training.elir.sampler import restore

RESIDUAL = r"(mlp\.1|block[12]\.block\.[02]|conv2d)"
PUBLISHED = re.compile(
    r"(enc\.layers\.(\d|1[0-4])(\.conv\.[024])?"
    r"|dec\.layers\.(\d|1[0-8])(\.conv\.[024])?"
    r"|mmse\.lrm\.[012]\.RDB[123]\.conv[1-5]\.block\.0"
    r"|fmir\.(time_mlp\.linear[12]|first_proj|final_proj|final_block\.block\.[02])"
    rf"|fmir\.(down_blocks\.[0-3]\.0|up_blocks\.[0-3]\.1|mid_blocks\.0)\.{RESIDUAL}"
    r"|fmir\.(down_blocks\.[13]\.1\.conv|up_blocks\.[02]\.0\.convtr))\.(weight|bias)"
)
"""As the specification of the published files lists them."""


def restored(nets: Networks) -> Tensor:
    return restore(nets, pixels(1, 3, 32, 32), double(1, CHANNELS, 4, 4), 0.1, 2)


def expanded_state(nets: Networks) -> dict[str, Tensor]:
    """As in a Lightning checkpoint: each block as the two layers that it is trained as."""
    state = public_state(nets)
    for prefix, net in (("fmir", nets.field), ("mmse", nets.coarse)):
        blocks = [m for m in net.modules() if isinstance(m, CollapsibleConv)]
        weights = {id(b): b.collapsed().weight for b in blocks}
        for block in blocks:
            (name,) = (
                n.removesuffix(".weight")
                for n, t in state.items()
                if n.startswith(prefix) and torch.equal(t, weights[id(block)])
            )
            stem, index = name.rsplit(".", 1)
            for number, conv in ((int(index), block.wide), (int(index) + 1, block.narrow)):
                for part, parameter in conv.named_parameters():
                    state[f"{stem}.{number}.{part}"] = parameter.detach()
    return state


def test_every_tensor_has_its_published_name() -> None:
    nets = small_networks()
    names = public_state(nets)
    assert [name for name in names if not PUBLISHED.fullmatch(name)] == []
    collapsed = [collapse(part) for name, part in vars(nets).items() if name != "frozen_encoder"]
    assert len(names) == sum(len(list(part.parameters())) for part in collapsed)


@pytest.mark.parametrize("state_of", [public_state, expanded_state])
@pytest.mark.parametrize("expand", [None, 2])
def test_weights_come_back_from_their_published_names(
    state_of: Callable[[Networks], dict[str, Tensor]], expand: int | None
) -> None:
    """Exactly, also into networks of the other form."""
    theirs, ours = small_networks(), small_networks(expand=expand, seed=1)
    before = restored(ours)
    load_public(ours, state_of(theirs))
    torch.testing.assert_close(restored(ours), restored(theirs), rtol=1e-10, atol=1e-12)
    assert not torch.equal(restored(ours), before)
    back = public_state(ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in public_state(theirs).items())


def test_sizes_are_read_off_the_weights() -> None:
    assert public_size(public_state(small_networks())) == (32, 1)
    with pytest.raises(FlowmapsrError, match=r"no tensor fmir.first_proj.weight among the 1"):
        public_size({"conv.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fmir.first_proj.bias", None, "the tensor fmir.first_proj.bias is missing"),
        ("fmir.other", torch.zeros(1), "1 tensors have no place in ELIR, first fmir.other"),
        (
            "mmse.lrm.0.RDB1.conv1.block.0.weight",
            torch.zeros(3, CHANNELS, 1, 1),
            r"weight of mmse.lrm.0.RDB1.conv1.block.0 has the shape \(3, 4, 1, 1\)",
        ),
    ],
)
def test_other_weights_are_refused_and_change_nothing(
    name: str, change: Tensor | None, message: str
) -> None:
    nets = small_networks()
    state, before = public_state(small_networks(seed=1)), public_state(nets)
    if change is None:
        del state[name]
    else:
        state[name] = change
    with pytest.raises(FlowmapsrError, match=message):
        load_public(nets, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in public_state(nets).items())
