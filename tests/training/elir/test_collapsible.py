"""A block computed as one convolution is its two convolutions: values, borders and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.elir.small_networks import CHANNELS, double, small_networks
from training.elir.collapsible import CollapsibleConv, collapse, collapsed_once


def block_with_large_biases(cin: int = 3, cout: int = 5) -> CollapsibleConv:
    torch.manual_seed(0)
    block = CollapsibleConv(cin, cout).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=10)
    return block


def expanded(block: CollapsibleConv, x: Tensor) -> Tensor:
    return block.narrow(block.wide(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (6, 5)])
def test_one_convolution_has_the_outputs_and_gradients_of_two(size: tuple[int, int]) -> None:
    block, x = block_with_large_biases(), double(2, 3, *size).requires_grad_()
    inputs = [x, *block.parameters()]
    ours, theirs = block(x), expanded(block, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-10)
    weights = torch.cos(torch.arange(ours.numel(), dtype=torch.float64)).view_as(ours)
    found, expected = (torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-12 * other.norm()


def test_calls_that_share_one_product_have_the_gradients_of_each_alone() -> None:
    block, x = block_with_large_biases(), double(3, 2, 3, 4, 4)
    inputs = list(block.parameters())
    expected = torch.autograd.grad(sum(expanded(block, one).square().sum() for one in x), inputs)
    with collapsed_once(block), torch.no_grad():
        block(x[0])
    with collapsed_once(nn.ModuleList([block])):
        total = sum(block(one).square().sum() for one in x)
    assert block.kept is None
    found = torch.autograd.grad(total, inputs)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-12 * other.norm()


def test_a_collapsed_block_is_one_convolution() -> None:
    block, x = block_with_large_biases(), double(2, 3, 6, 5)
    conv = collapse(block)
    assert type(conv) is nn.Conv2d and conv.weight.dtype == torch.float64
    torch.testing.assert_close(conv(x), expanded(block, x), rtol=1e-12, atol=1e-10)


def test_collapsing_copies_a_network_and_changes_only_its_blocks() -> None:
    field = small_networks().field.eval()
    before = {name: p.clone() for name, p in field.named_parameters()}
    state = torch.get_rng_state()
    collapsed = collapse(field)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(m, CollapsibleConv) for m in collapsed.modules())
    assert not any(m.training for m in collapsed.modules())
    assert {id(p) for p in collapsed.parameters()}.isdisjoint(map(id, field.parameters()))
    z, t = double(2, CHANNELS, 4, 8), torch.tensor([0.0, 0.7], dtype=torch.float64)
    torch.testing.assert_close(collapsed(z, t), field(z, t), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(p, before[name]) for name, p in field.named_parameters())


def test_a_block_that_starts_from_a_convolution_is_that_one_and_can_leave_it() -> None:
    block, conv = CollapsibleConv(3, 5), nn.Conv2d(3, 5, 3, padding=1)
    assert conv.bias is not None
    block.start_from(conv.weight, conv.bias)
    collapsed = block.collapsed()
    assert torch.equal(collapsed.weight, conv.weight)
    assert collapsed.bias is not None and torch.equal(collapsed.bias, conv.bias)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(x), conv(x))
    block(x).square().mean().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert block.narrow.weight.grad[:, 5:].any()  # type: ignore[index]
