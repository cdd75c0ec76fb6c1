"""Targets against the exact map of a Gaussian pair with rho < 1, where wrong ones are visible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.gaussian import GaussianPair
from training.flowmap.derivatives import directional_derivative
from training.flowmap.interpolant import Velocity, flow_map, interpolate
from training.flowmap.targets import (
    eulerian_target,
    flow_matching_target,
    grounded,
    guided_velocity,
    lagrangian_target,
    shortcut_target,
)

PAIR = GaussianPair()
POSITIVE = GaussianPair(m0=0.0, m1=0.0)
NEGATIVE = GaussianPair(m0=0.0, m1=0.0, s0=0.6, rho=0.2)
W = 2.5


def _inside() -> tuple[Tensor, Tensor, Tensor]:
    """States with s well below t, where u of the closed form is smooth."""
    x, t, s = PAIR.states()
    return x, 0.3 + 0.7 * t, 0.25 * s


def _counted(u: Velocity) -> tuple[Velocity, list[int]]:
    calls: list[int] = []

    def counting(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        calls.append(len(x))
        return u(x, t, s)

    return counting, calls


def test_shortcut_residual_is_zero_at_the_exact_map() -> None:
    x, t, s = PAIR.states()
    target = shortcut_target(PAIR.u, x, t, s)
    torch.testing.assert_close(target, PAIR.u(x, t, s))


def test_shortcut_residual_is_not_zero_with_a_sign_flipped() -> None:
    x, t, s = PAIR.states()
    m = (t + s) / 2
    forward = x + (t - m)[:, None] * PAIR.u(x, t, m)  # the map in the wrong direction
    wrong = 0.5 * PAIR.u(x, t, m) + 0.5 * PAIR.u(forward, m, s)
    assert (wrong - PAIR.u(x, t, s)).abs().max() > 0.1


def test_eulerian_residual_is_zero_at_the_exact_map() -> None:
    x, t, s = _inside()
    velocity = PAIR.velocity(x, t)
    target = eulerian_target(PAIR.u, x, t, s, velocity)
    torch.testing.assert_close(target, PAIR.u(x, t, s), rtol=1e-9, atol=1e-9)


def test_lagrangian_residual_is_zero_at_the_exact_map() -> None:
    x, t, s = _inside()
    given = PAIR.velocity(PAIR.exact_map(x, t, s), s)
    for velocity_at_s in (given, PAIR.velocity):
        target = lagrangian_target(PAIR.u, x, t, s, velocity_at_s)
        torch.testing.assert_close(target, PAIR.u(x, t, s), rtol=1e-9, atol=1e-9)


def test_residuals_are_not_zero_with_a_sign_flipped() -> None:
    x, t, s = _inside()
    exact, width = PAIR.u(x, t, s), (t - s)[:, None]
    at_t, at_s = PAIR.velocity(x, t), PAIR.velocity(PAIR.exact_map(x, t, s), s)
    eulerian = eulerian_target(PAIR.u, x, t, s, at_t)
    lagrangian = lagrangian_target(PAIR.u, x, t, s, at_s)
    zero = torch.zeros_like
    _, d_t = directional_derivative(PAIR.u, (x, t, s), (zero(x), torch.ones_like(t), zero(s)))
    _, d_x = directional_derivative(PAIR.u, (x, t, s), (at_t, zero(t), zero(s)))
    flipped = {
        "eulerian, whole derivative": 2 * at_t - eulerian,
        "eulerian, d_t": at_t - width * (d_x - d_t),
        "eulerian, d_x": at_t - width * (d_t - d_x),
        "lagrangian, derivative": 2 * at_s - lagrangian,
        "lagrangian, velocity": lagrangian - 2 * at_s,
        "lagrangian, map": lagrangian - at_s + PAIR.velocity(x + width * exact, s),
    }
    for name, target in flipped.items():
        assert (target - exact).abs().max() > 0.05, name


def test_the_papers_lagrangian_target_is_biased() -> None:
    """Its mean over v given x_t has the velocity at t where the exact one has that at s."""
    x, t, s = _inside()
    biased = lagrangian_target(PAIR.u, x, t, s, PAIR.velocity(x, t))
    assert (biased - PAIR.u(x, t, s)).abs().mean() > 0.1

    def euler(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return PAIR.velocity(x, t)

    # It converges to one Euler step, the blurred mean at s = 0.
    torch.testing.assert_close(
        lagrangian_target(euler, x, t, s, PAIR.velocity(x, t)), euler(x, t, s)
    )


def _guided_u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The average velocity of X^w(x) = x (sd+_s / sd+_t)^w (sd-_s / sd-_t)^(1-w), zero means."""
    powers = ((POSITIVE, W), (NEGATIVE, 1 - W))
    spread = torch.ones_like(t)
    for pair, power in powers:
        spread = spread * (pair.variance(s) / pair.variance(t)) ** (power / 2)
    return x * ((1 - spread) / (t - s))[:, None]


def _guided_v(x: Tensor, t: Tensor) -> Tensor:
    return guided_velocity(POSITIVE.velocity(x, t), NEGATIVE.velocity(x, t), W)


def test_guided_residuals_are_zero_at_the_exact_guided_map() -> None:
    x, t, s = _inside()
    exact = _guided_u(x, t, s)
    for target in (
        shortcut_target(_guided_u, x, t, s),
        eulerian_target(_guided_u, x, t, s, _guided_v(x, t)),
        lagrangian_target(_guided_u, x, t, s, _guided_v),
    ):
        torch.testing.assert_close(target, exact)
    plain = eulerian_target(_guided_u, x, t, s, POSITIVE.velocity(x, t))
    assert (plain - exact).abs().max() > 0.05


def test_guidance_is_an_affine_combination_with_one_strength_a_sample() -> None:
    v, negative = torch.randn(2, 3, 2, 4, requires_grad=True)
    w = torch.tensor([1.0, 0.0, 3.5])
    guided = guided_velocity(v, negative, w)
    assert torch.equal(guided[0], v[0]) and torch.equal(guided[1], negative[1])
    torch.testing.assert_close(guided[2], negative[2] + 3.5 * (v[2] - negative[2]))
    assert not guided.requires_grad
    assert torch.equal(guided_velocity(v, negative, 3.5)[2], guided[2])


def test_derivative_targets_evaluate_once_and_detach() -> None:
    x, t, s = _inside()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    u, calls = _counted(lambda x, t, s: weight * PAIR.u(x, t, s))
    velocity = weight * PAIR.velocity(x, t)
    assert not eulerian_target(u, x, t, s, velocity).requires_grad
    assert not lagrangian_target(u, x, t, s, velocity).requires_grad
    assert not lagrangian_target(u, x, t, s, lambda x, s: weight * x).requires_grad
    assert calls == [64, 64, 64]


def test_a_derivative_is_exact_on_quadratics() -> None:
    x, t, s = torch.randn(5, 3), torch.rand(5), torch.rand(5)

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x**2 + (t * s)[:, None]

    along = (torch.randn(5, 3), torch.randn(5), torch.randn(5))
    value, slope = directional_derivative(u, (x, t, s), along)
    assert torch.equal(value, u(x, t, s))
    torch.testing.assert_close(slope, 2 * x * along[0] + (along[1] * s + t * along[2])[:, None])


def test_shortcut_evaluates_the_model_twice_and_detaches() -> None:
    x, t, s = PAIR.states()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    u, calls = _counted(lambda x, t, s: weight * PAIR.u(x, t, s))
    assert not shortcut_target(u, x, t, s).requires_grad
    assert calls == [64, 64]


def test_a_straight_coupling_makes_every_target_the_displacement() -> None:
    x0 = torch.randn(16, 3)
    x1 = x0 + 2.5
    t = torch.rand(16)
    x_t = interpolate(x0, x1, t)
    displacement = flow_matching_target(x0, x1)
    torch.testing.assert_close(displacement, torch.full((16, 3), 2.5))

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.full_like(x, 2.5)

    for constant in (
        shortcut_target(u, x_t, t, t / 2),
        eulerian_target(u, x_t, t, t / 2, displacement),
        lagrangian_target(u, x_t, t, t / 2, displacement),
        lagrangian_target(u, x_t, t, t / 2, lambda x, s: u(x, s, s)),
        guided_velocity(displacement, u(x_t, t, t), 3.0),
    ):
        torch.testing.assert_close(constant, displacement)


def test_flow_matching_regresses_to_the_marginal_velocity() -> None:
    generator = torch.Generator().manual_seed(4)
    x0, x1 = PAIR.sample(400_000, generator)
    t = torch.full((len(x0),), 0.4, dtype=torch.float64)
    x_t, v = interpolate(x0, x1, t), flow_matching_target(x0, x1)
    # The best linear prediction of v from x_t is E[v | x_t] for a Gaussian pair.
    slope = ((x_t - x_t.mean()) * (v - v.mean())).mean() / x_t.var()
    at = torch.tensor([[0.9]], dtype=torch.float64)
    predicted = v.mean() + slope * (at - x_t.mean())
    torch.testing.assert_close(predicted, PAIR.velocity(at, t[:1]), rtol=0.02, atol=0.02)


def test_levels_from_instantaneous_velocities_are_euler_with_twice_the_finest_grid() -> None:
    """Bootstrapping levels K..0 from instantaneous velocities gives exactly 2^(K+1) Euler steps."""
    levels = 2

    def ladder(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """What a model that fits its shortcut targets perfectly returns on the training grid."""
        if torch.equal(t, s):
            return PAIR.velocity(x, t)
        teacher = grounded(ladder, finest=2.0**-levels)
        return shortcut_target(teacher, x, t, s)

    _, x1 = PAIR.sample(16, torch.Generator().manual_seed(0))
    one, zero = torch.ones(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    euler = x1
    grid = torch.linspace(1, 0, 2 ** (levels + 1) + 1, dtype=torch.float64)
    for start, end in zip(grid[:-1], grid[1:], strict=True):
        euler = euler - (start - end) * PAIR.velocity(euler, start * one)
    torch.testing.assert_close(flow_map(ladder, x1, one, zero), euler)


def test_ladder_error_halves_with_each_level() -> None:
    _, x1 = PAIR.sample(16, torch.Generator().manual_seed(0))
    one, zero = torch.ones(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    exact = PAIR.exact_map(x1, one, zero)

    def error(levels: int) -> float:
        def ladder(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            if torch.equal(t, s):
                return PAIR.velocity(x, t)
            return shortcut_target(grounded(ladder, finest=2.0**-levels), x, t, s)

        return (flow_map(ladder, x1, one, zero) - exact).abs().mean().item()

    errors = [error(levels) for levels in (4, 5, 6)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)
