"""The derivative of the network is exact in forward mode, and costs two evaluations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp as reverse_mode_jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.networks import ATTENTION, tiny_net
from training.flowmap.derivatives import Point, directional_derivative
from training.flowmap.interpolant import Velocity
from training.flowmap.network import FlowMapNet
from training.monitoring.mfu import FlopCounter

N, CHANNELS, SIDE = 3, 12, 8
DIRECTIONS = pytest.mark.parametrize("formulation", ["eulerian", "lagrangian"])


@pytest.fixture
def net() -> FlowMapNet:
    """With attention, and no layer with an output of 0 or weights of 1."""
    net = tiny_net(channels=CHANNELS, time_embedding_scale=10.0, **ATTENTION)
    for layer in net.modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
    return net


def _point(dtype: torch.dtype = torch.float32) -> Point:
    x = torch.randn(N, CHANNELS, SIDE, SIDE, dtype=dtype)
    return x, torch.rand(N, dtype=dtype), torch.rand(N, dtype=dtype)


def _along(formulation: str, point: Point) -> Point:
    x, t, s = point
    if formulation == "eulerian":
        return torch.randn_like(x), torch.ones_like(t), torch.zeros_like(s)
    return torch.zeros_like(x), torch.zeros_like(t), torch.ones_like(s)


def _unet(net: FlowMapNet) -> Velocity:
    """The network without its conversion of the output to float32."""

    def evaluate(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        labels = torch.cat([net._embed(s), net.prompts[:1].expand(N, -1)], dim=1)
        return net.unet(x, 10 * t, None, class_labels=labels.to(x.dtype)).sample

    return evaluate


def _torchs_own(u: Velocity, point: Point, along: Point) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        value, slope = torch.func.jvp(u, point, along)
    return value, slope


def _distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@DIRECTIONS
def test_the_derivative_equals_torchs_jvp(net: FlowMapNet, formulation: str) -> None:
    point = _point()
    along = _along(formulation, point)
    doubled = tuple(x.double() for x in point), tuple(x.double() for x in along)
    ours, torchs = (
        [method(_unet(net.float()), point, along), method(_unet(net.double()), *doubled)]
        for method in (directional_derivative, _torchs_own)
    )
    for index in (0, 1):
        single, double, exact = ours[0][index], ours[1][index], torchs[1][index]
        assert not single.requires_grad
        assert _distance(double, exact) < 1e-12
        assert _distance(single, exact) < 1.2 * _distance(torchs[0][index], exact) < 2e-6


def test_it_equals_two_reverse_passes_also_of_a_checkpointed_network(net: FlowMapNet) -> None:
    x, t, s = point = _point()
    along = _along("eulerian", point)
    with sdpa_kernel(SDPBackend.MATH):
        expected = reverse_mode_jvp(lambda x, t: net(x, t, s), (x, t), along[:2])
    net.unet.enable_gradient_checkpointing()
    found = directional_derivative(net, point, along)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected[1].std()))


@DIRECTIONS
def test_in_bf16_the_derivative_is_as_exact_as_torchs_jvp(
    net: FlowMapNet, formulation: str
) -> None:
    point = _point()
    along = _along(formulation, point)
    exact = _torchs_own(net, point, along)[1]
    net.to(torch.bfloat16)

    def error(method: Callable[[Velocity, Point, Point], tuple[Tensor, Tensor]]) -> float:
        return _distance(method(net, point, along)[1], exact)

    assert error(directional_derivative) < 1.1 * error(_torchs_own)


def test_counting_its_operations_changes_no_bit(net: FlowMapNet) -> None:
    point = _point()
    along = _along("eulerian", point)
    plain = directional_derivative(net, point, along)
    with FlopCounter():
        counted = directional_derivative(net, point, along)
    assert all(map(torch.equal, plain, counted))


def test_it_costs_two_evaluations(net: FlowMapNet) -> None:
    point = _point()

    def flops(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    along = _along("eulerian", point)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        once = flops(lambda: net(*point))
    assert 1.95 < flops(lambda: directional_derivative(net, point, along)) / once < 2.1
    assert flops(lambda: _torchs_own(net, point, along)) / once > 2.9


@pytest.mark.parametrize(
    "layer",
    [
        lambda x, w: functional.conv2d(x, w[:, :, None, None], w[0]),
        lambda x, w: functional.linear(x.mT, w, w[0]).mT,
        lambda x, w: functional.group_norm(x, 2, w[0], w[1]),
        lambda x, w: functional.layer_norm(x, (4,), w[0], w[1]),
        lambda x, w: functional.scaled_dot_product_attention(x, x, x * w, is_causal=True),
        lambda x, w: functional.scaled_dot_product_attention(x, x, w.expand_as(x)),
        lambda x, w: x / (2 + w),
    ],
    ids=["conv", "linear", "group norm", "layer norm", "masked", "attention", "quotient"],
)
def test_all_that_depends_on_the_point_is_differentiated(
    layer: Callable[[Tensor, Tensor], Tensor],
) -> None:
    weight = torch.randn(4, 4, dtype=torch.float64)

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return layer(x, weight * t.mean().sin())

    point = torch.randn(2, 4, 4, 4).double(), torch.rand(2).double(), torch.rand(2).double()
    along = _along("eulerian", point)
    torch.testing.assert_close(
        directional_derivative(u, point, along), _torchs_own(u, point, along)
    )


def test_the_derivative_of_a_constant_is_zero() -> None:
    point = _point()
    value, slope = directional_derivative(lambda x, t, s: torch.ones(2), point, point)
    assert torch.equal(value, torch.ones(2)) and torch.equal(slope, torch.zeros(2))
