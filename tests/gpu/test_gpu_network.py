"""The network, its derivative and its attention on a GPU against the CPU in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.distance import distance, gradient
from tests.support.networks import ATTENTION, tiny_net
from training.flowmap.derivatives import Point, directional_derivative
from training.flowmap.network import FlowMapNet

N, CHANNELS, SIDE = 4, 12, 16
SAME = 1e-4
"""Largest distance in fp32: sums in another order."""
ROUNDED = 0.03
"""Largest distance of a pass in bf16, which has 8 bits."""
ROUNDED_SLOPE = 0.05
"""The same of derivatives, which are differences, and of gradients."""
CPU = torch.device("cpu")
DIRECTIONS = pytest.mark.parametrize("formulation", ["eulerian", "lagrangian"])


def _net(place: torch.device, dtype: torch.dtype = torch.float32) -> FlowMapNet:
    net = tiny_net(guidance_conditioning=True, time_embedding_scale=10.0, **ATTENTION)
    return net.to(place, dtype)


def _point(place: torch.device) -> Point:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(N, CHANNELS, SIDE, SIDE, generator=draws)
    t, s = torch.rand(2, N, generator=draws).sort(dim=0, descending=True).values
    return x.to(place), t.to(place), s.to(place)


def _passes(net: FlowMapNet, place: torch.device) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of its mean square."""
    value = net(*_point(place))
    value.square().mean().backward()
    return value, gradient(net)


def test_both_passes_equal_the_cpus(device: torch.device) -> None:
    value, slope = _passes(_net(device), device)
    expected, expected_slope = _passes(_net(CPU), CPU)
    assert distance(value, expected) < SAME
    assert distance(slope, expected_slope) < SAME


def test_channels_last_changes_nothing(device: torch.device) -> None:
    net = _net(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    value, slope = _passes(net, device)
    expected, expected_slope = _passes(_net(CPU), CPU)
    assert distance(value, expected) < SAME
    assert distance(slope, expected_slope) < SAME


def test_bf16_rounds_both_passes_only(device: torch.device) -> None:
    value, slope = _passes(_net(device, torch.bfloat16), device)
    expected, expected_slope = _passes(_net(CPU), CPU)
    assert value.dtype == torch.float32
    assert 0 < distance(value, expected) < ROUNDED
    assert distance(slope, expected_slope) < ROUNDED_SLOPE


def _along(formulation: str, point: Point) -> Point:
    x, t, s = point
    if formulation == "eulerian":
        return x.flip(0), torch.ones_like(t), torch.zeros_like(s)
    return torch.zeros_like(x), torch.zeros_like(t), torch.ones_like(s)


@DIRECTIONS
@pytest.mark.parametrize(
    ("dtype", "apart", "slopes_apart"),
    [(torch.float32, SAME, SAME), (torch.bfloat16, ROUNDED, ROUNDED_SLOPE)],
    ids=["fp32", "bf16"],
)
def test_the_derivative_equals_the_cpus(
    device: torch.device, formulation: str, dtype: torch.dtype, apart: float, slopes_apart: float
) -> None:
    point, expected_point = _point(device), _point(CPU)
    found = directional_derivative(_net(device, dtype), point, _along(formulation, point))
    along = _along(formulation, expected_point)
    expected = directional_derivative(_net(CPU), expected_point, along)
    assert distance(found[0], expected[0]) < apart
    assert distance(found[1], expected[1]) < slopes_apart


def test_flash_attention_in_bf16_equals_math(device: torch.device) -> None:
    def attend(backend: SDPBackend, dtype: torch.dtype) -> list[Tensor]:
        draws = torch.Generator().manual_seed(0)
        inputs = torch.randn(3, 2, 4, 256, 64, generator=draws).to(device, dtype)
        inputs.requires_grad_()
        with sdpa_kernel(backend):
            value = functional.scaled_dot_product_attention(*inputs)
        value.float().square().mean().backward()
        assert inputs.grad is not None
        return [value, inputs.grad]

    found = attend(SDPBackend.FLASH_ATTENTION, torch.bfloat16)
    for flash, math in zip(found, attend(SDPBackend.MATH, torch.float32), strict=True):
        assert distance(flash, math) < 0.01


class _Attention(TorchDispatchMode):
    """Names of the attention kernels that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if "scaled_dot_product" in name:
            self.names.add(name)
        return func(*args, **kwargs or {})


def test_a_pass_in_bf16_runs_on_a_fused_kernel_and_the_derivative_on_math(
    device: torch.device,
) -> None:
    net, point = _net(device, torch.bfloat16), _point(device)
    with _Attention() as passes:
        _passes(net, device)
    # Of the forward and the backward pass; cuDNN's is fused too.
    assert len(passes.names) == 2
    assert all("flash" in name or "cudnn" in name for name in passes.names)
    with _Attention() as derivative:
        directional_derivative(net, point, _along("eulerian", point))
    assert not derivative.names
