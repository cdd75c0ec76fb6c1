"""The exact derivative of a velocity u(x, t, s) along a direction, by forward-mode differentiation.

Costs about two evaluations of u: one for the value and one for the derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from training.flowmap.interpolant import Velocity

Point = tuple[Tensor, Tensor, Tensor]
"""(x, t, s), or a direction in their space."""


@torch.no_grad()
def directional_derivative(u: Velocity, point: Point, along: Point) -> tuple[Tensor, Tensor]:
    """u(x, t, s) and its derivative along (dx, dt, ds), both shaped as u and detached.

    Equals `torch.func.jvp`. Masked attention runs on the MATH kernel, the only one with a forward
    derivative.
    """
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level(), _ConstantWeights():
        duals = (forward_ad.make_dual(p, d) for p, d in zip(point, along, strict=True))
        value, slope = forward_ad.unpack_dual(u(*duals))
        return value.detach(), torch.zeros_like(value) if slope is None else slope.detach()


class _ConstantWeights(TorchFunctionMode):
    """Differentiates layers with weights with respect to their input only.

    torch's own rules multiply the input by the tangents of the weights as well, also where these
    are zero: a third pass through all convolutions and matrix products. Its rules for normalization
    and attention are exact too, but made of many more kernels than those below.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        rule = _RULES.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(func, *args, **kwargs or {})


Layer = Callable[..., Tensor]


def _linear(
    layer: Layer, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any
) -> Tensor:
    """A convolution or matrix product W x + b, whose derivative is W dx."""
    x, dx = forward_ad.unpack_dual(input)
    if dx is None or not _are_constant(weight, bias):
        return layer(input, weight, bias, *args)
    return forward_ad.make_dual(layer(x, weight, bias, *args), layer(dx, weight, None, *args))


def _norm(
    layer: Layer,
    input: Tensor,
    over: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """weight * normalized(x) + bias, over a number of groups or the last dimensions of that shape.

    The Jacobian of the normalization is symmetric, so that its backward pass, one fused kernel,
    also multiplies by it from the other side.
    """
    x, dx = forward_ad.unpack_dual(input)
    if dx is None or not _are_constant(weight, bias):
        return layer(input, over, weight, bias, eps)
    x, dx = _precise(x), _precise(dx)
    weight, bias = (None if w is None else _precise(w) for w in (weight, bias))
    if isinstance(over, int):
        n, channels = x.shape[:2]
        sizes = (n, channels, x.numel() // (n * channels), over)
        value, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, eps)
        slope = _aten.native_group_norm_backward(dx, x, mean, rstd, None, *sizes, _OF_INPUT)[0]
        weight = None if weight is None else weight.view(-1, *[1] * (x.ndim - 2))
    else:
        value, mean, rstd = torch.native_layer_norm(x, over, weight, bias, eps)
        slope = _aten.native_layer_norm_backward(dx, x, over, mean, rstd, None, None, _OF_INPUT)[0]
    if weight is not None:
        slope = slope * weight
    return forward_ad.make_dual(value.to(input.dtype), slope.to(input.dtype))


def _attention(
    layer: Layer, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """P v with P = softmax(S), S = q k^T / sqrt(d), whose derivative is dP v + P dv with
    dP = P (dS - sum P dS). torch's own treats rows of P that a mask leaves empty as well."""
    pairs = [forward_ad.unpack_dual(each) for each in (query, key, value)]
    has_options = any(isinstance(each, Tensor) or each for each in (*args, *kwargs.values()))
    if has_options or any(tangent is None for _, tangent in pairs):
        return layer(query, key, value, *args, **kwargs)
    (q, dq), (k, dk), (v, dv) = ((_precise(x), _precise(dx)) for x, dx in pairs)
    scale = q.shape[-1] ** -0.5
    q, dq = q * scale, dq * scale
    p = (q @ k.mT).softmax(dim=-1)
    dp = (dq @ k.mT).add_(q @ dk.mT).mul_(p)
    dp.sub_(p * dp.sum(dim=-1, keepdim=True))
    slope = (dp @ v).add_(p @ dv)
    return forward_ad.make_dual((p @ v).to(query.dtype), slope.to(query.dtype))


def _quotient(layer: Layer, input: Tensor, other: Tensor | float) -> Tensor:
    """x / number: torch would give the number a tangent of zero, and subtract its part."""
    x, dx = forward_ad.unpack_dual(input)
    if dx is None or isinstance(other, Tensor):
        return layer(input, other)
    return forward_ad.make_dual(x / other, dx / other)


_aten = torch.ops.aten
_OF_INPUT = [True, False, False]
"""Gradients of the input, not of weight and bias."""

_RULES: dict[Any, Layer] = {
    functional.conv2d: _linear,
    functional.linear: _linear,
    functional.group_norm: _norm,
    functional.layer_norm: _norm,
    functional.scaled_dot_product_attention: _attention,
    Tensor.__truediv__: _quotient,
}


def _precise(x: Tensor) -> Tensor:
    """At least float32: bf16 kernels round mean and deviation too, and slopes are differences."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _are_constant(*weights: Tensor | None) -> bool:
    """Whether no weight depends on the point, as one computed from t would."""
    return all(w is None or forward_ad.unpack_dual(w).tangent is None for w in weights)
