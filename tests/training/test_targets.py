"""The targets against the exact map of a Gaussian pair with rho < 1, where wrong targets show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.gaussian import GaussianPair
from training.interpolant import Velocity, flow_map, interpolate
from training.objectives.targets import flow_matching_target, grounded, shortcut_target

PAIR = GaussianPair()


def _states(n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = PAIR.sample(n, generator)
    s, t = torch.rand(2, n, generator=generator, dtype=torch.float64).sort(dim=0).values
    return interpolate(x0, x1, t), t, s


def _counted(u: Velocity) -> tuple[Velocity, list[int]]:
    calls: list[int] = []

    def counting(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        calls.append(len(x))
        return u(x, t, s)

    return counting, calls


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.8])
def test_shortcut_residual_is_zero_at_the_exact_map(fraction: float) -> None:
    x, t, s = _states()
    target = shortcut_target(PAIR.u, x, t, s, fraction=fraction)
    torch.testing.assert_close(target, PAIR.u(x, t, s))


def test_shortcut_residual_is_not_zero_with_a_sign_flipped() -> None:
    x, t, s = _states()
    m = (t + s) / 2
    forward = x + (t - m)[:, None] * PAIR.u(x, t, m)  # the map taken the wrong way
    wrong = 0.5 * PAIR.u(x, t, m) + 0.5 * PAIR.u(forward, m, s)
    assert (wrong - PAIR.u(x, t, s)).abs().max() > 0.1


def test_shortcut_evaluates_the_model_twice_and_detaches() -> None:
    x, t, s = _states()
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
    constant = shortcut_target(lambda x, t, s: torch.full_like(x, 2.5), x_t, t, t / 2)
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


def test_the_ladder_on_a_grounded_foot_is_euler_with_twice_the_finest_grid() -> None:
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
