"""Closed forms of the path, the flow map, the time grids and few-step sampling."""

from __future__ import annotations

import pytest
import torch

from tests.support.gaussian import GaussianPair
from training.flowmap.interpolant import flow_map, interpolate, sample, sample_times

PAIR = GaussianPair()


def test_interpolant_meets_hq_at_0_and_lq_at_1() -> None:
    x0, x1 = torch.randn(2, 3, 4, 5, 5)
    assert torch.equal(interpolate(x0, x1, torch.zeros(3)), x0)
    assert torch.equal(interpolate(x0, x1, torch.ones(3)), x1)


def test_samples_of_the_interpolant_have_the_closed_form_moments() -> None:
    x0, x1 = PAIR.sample(200_000, torch.Generator().manual_seed(1))
    t = torch.full((len(x0),), 0.3, dtype=torch.float64)
    x_t = interpolate(x0, x1, t)
    assert x_t.mean().item() == pytest.approx(PAIR.mean(t[:1]).item(), abs=0.01)
    assert x_t.var().item() == pytest.approx(PAIR.variance(t[:1]).item(), rel=0.02)


def test_flow_map_of_the_exact_velocity_is_the_exact_map() -> None:
    x, t, s = PAIR.states()
    torch.testing.assert_close(flow_map(PAIR.u, x, t, s), PAIR.exact_map(x, t, s))


def test_flow_map_is_the_identity_where_s_equals_t() -> None:
    x, t, _ = PAIR.states()
    assert torch.equal(flow_map(PAIR.u, x, t, t), x)


def test_flow_maps_compose() -> None:
    x, t, s = PAIR.states()
    m = (t + s) / 2
    two = flow_map(PAIR.u, flow_map(PAIR.u, x, t, m), m, s)
    torch.testing.assert_close(two, flow_map(PAIR.u, x, t, s))


def test_average_velocity_tends_to_the_instantaneous_one() -> None:
    x, t, _ = PAIR.states()
    torch.testing.assert_close(PAIR.u(x, t, t - 1e-6), PAIR.velocity(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_any_number_of_steps_agrees_at_the_exact_map(steps: int) -> None:
    _, x1 = PAIR.sample(32, torch.Generator().manual_seed(2))
    torch.testing.assert_close(sample(PAIR.u, x1, steps), sample(PAIR.u, x1, 1))


def test_one_exact_step_carries_lq_to_the_distribution_of_hq() -> None:
    _, x1 = PAIR.sample(200_000, torch.Generator().manual_seed(3))
    x0 = sample(PAIR.u, x1, 1)
    assert x0.mean().item() == pytest.approx(PAIR.m0, abs=0.01)
    assert x0.std().item() == pytest.approx(PAIR.s0, rel=0.01)


@pytest.mark.parametrize("kind", ["shortcut", "uniform"])
def test_times_lie_on_the_dyadic_grids_in_order(kind: str) -> None:
    times = sample_times(
        20_000,
        levels=3,
        flow_matching_fraction=0.5,
        kind=kind,  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(0),
    )
    t, s, is_fm = times
    assert torch.equal(t * 8, (t * 8).round()) and torch.equal(s * 8, (s * 8).round())
    assert ((s >= 0) & (t <= 1)).all()
    assert torch.equal(s[is_fm], t[is_fm])
    assert (s[~is_fm] < t[~is_fm]).all()


def test_shortcut_intervals_are_aligned_and_their_levels_equally_frequent() -> None:
    t, s, is_fm = sample_times(
        40_000,
        levels=3,
        flow_matching_fraction=0.0,
        kind="shortcut",
        generator=torch.Generator().manual_seed(0),
    )
    assert not is_fm.any()
    width = t - s
    assert torch.equal(t / width, (t / width).round())
    counts = [(width == 2.0**-k).double().mean().item() for k in range(4)]
    assert counts == pytest.approx([0.25] * 4, abs=0.01)


def test_flow_matching_times_cover_each_grid_uniformly() -> None:
    t, _, _ = sample_times(
        60_000,
        levels=1,
        flow_matching_fraction=1.0,
        kind="shortcut",
        generator=torch.Generator().manual_seed(0),
    )
    # T_0 = {0, 1} and T_1 = {0, 1/2, 1}, each half of the time.
    expected = {0.0: 1 / 4 + 1 / 6, 0.5: 1 / 6, 1.0: 1 / 4 + 1 / 6}
    for value, share in expected.items():
        assert (t == value).double().mean().item() == pytest.approx(share, abs=0.01)


def test_the_fraction_holds_in_every_batch_and_is_exact_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)

    def count(n: int) -> int:
        times = sample_times(
            n, levels=7, flow_matching_fraction=0.75, kind="shortcut", generator=generator
        )
        return int(times.is_flow_matching.sum())

    assert {count(8) for _ in range(20)} == {6}
    small = [count(2) for _ in range(2_000)]
    assert set(small) == {1, 2}
    assert sum(small) / len(small) == pytest.approx(1.5, abs=0.05)


def test_times_depend_on_the_generator_only() -> None:
    draws = [
        sample_times(
            16,
            levels=7,
            flow_matching_fraction=0.75,
            kind="shortcut",
            generator=torch.Generator().manual_seed(5),
        )
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
