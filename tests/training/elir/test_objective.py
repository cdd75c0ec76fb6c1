"""ELIR's losses against closed forms, and against the plainest code that computes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.elir.small_networks import (
    CHANNELS,
    TRAINED,
    double,
    gradients,
    pixels,
    small_networks,
)
from training.elir.objective import (
    elir_losses,
    endpoint,
    flow_matching_loss,
    interpolant,
    latent_consistency,
    sample_times,
    segment_ends,
)
from training.elir.sampler import euler


@dataclass(frozen=True)
class Settings:
    segments: int = 3
    time_step: float = 0.05
    alpha: float = 0.25
    beta: float = 0.3
    sigma_min: float = 0.01
    sigma_s: float = 0.1


def flow(settings: Settings) -> dict[str, Any]:
    names = ("segments", "time_step", "alpha", "sigma_min")
    return {name: getattr(settings, name) for name in names}


def test_times_are_uniform_up_to_one_step_before_the_end() -> None:
    t = sample_times(100_000, 0.2, generator=torch.Generator().manual_seed(0))
    assert t.shape == (100_000,) and t.min() >= 0 and t.max() <= 0.8
    assert t.mean().item() == pytest.approx(0.4, abs=0.003)
    assert t.var().item() == pytest.approx(0.8**2 / 12, rel=0.01)
    again = sample_times(100_000, 0.2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(t, again)


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_segments_are_closed_on_the_right(segments: int, dtype: torch.dtype) -> None:
    edges = torch.arange(segments + 1, dtype=dtype) / segments
    assert torch.equal(segment_ends(edges[1:], segments), edges[1:])
    assert torch.equal(segment_ends(edges[:-1] + 0.5 / segments, segments), edges[1:])
    assert torch.equal(segment_ends(edges[:1], segments), edges[1:2])


@pytest.mark.parametrize("segments", [1, 3, 5])
@pytest.mark.parametrize(("time_step", "alpha"), [(0.05, 0.0), (0.2, 1e-3), (0.7, 2.0)])
def test_the_exact_velocity_of_a_straight_coupling_loses_nothing(
    segments: int, time_step: float, alpha: float
) -> None:
    """f is the path's point at the segment's end, ẑ1 its last one, and all step counts agree."""
    sigma_min = 0.01
    z0, z1 = double(2, 6, 3, 4, 4).unbind()

    def v(z: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (6,)
        return z1 - (1 - sigma_min) * z0

    t = torch.linspace(0, 1 - time_step, 6, dtype=torch.float64)
    weights = {"segments": segments, "time_step": time_step, "alpha": alpha}
    found = latent_consistency(v, z0, z1, t, sigma_min=sigma_min, **weights)  # type: ignore[arg-type]
    assert found.loss.item() < 1e-28
    torch.testing.assert_close(found.f, interpolant(z0, z1, found.end, sigma_min))
    last = z1 + sigma_min * z0
    torch.testing.assert_close(endpoint(v, found.f, found.end), last)
    assert flow_matching_loss(v, z0, z1, t, sigma_min) == 0
    for steps in (1, 2, 3, 7):
        torch.testing.assert_close(euler(v, z0, steps), last)


def reference_consistency(
    v: Any, z0: Tensor, z1: Tensor, t: Tensor, settings: Settings
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and every sample's f, one sample after another."""
    total, ends = z0.new_zeros(()), []
    for a, b, time in zip(z0, z1, t.tolist(), strict=True):

        def at(s: float, a: Tensor = a, b: Tensor = b) -> Tensor:
            return s * b + (1 - (1 - settings.sigma_min) * s) * a

        def velocity(z: Tensor, s: float) -> Tensor:
            return v(z[None], torch.tensor([s], dtype=z.dtype))[0]

        end = max(1, math.ceil(time * settings.segments)) / settings.segments
        later = time + settings.time_step
        v_t, v_r = velocity(at(time), time), velocity(at(later), later).detach()
        f = at(time) + (end - time) * v_t
        target = at(later) + (end - later) * v_r if later < end else at(end)
        error = ((f - target.detach()) ** 2).mean()
        total = total + error + settings.alpha * ((v_t - v_r) ** 2).mean()
        ends.append(f)
    return total / len(z0), ends


@pytest.mark.parametrize("n", [1, 7])
def test_the_loss_is_the_papers_of_one_sample_after_another(n: int) -> None:
    settings, field = Settings(), small_networks().field
    z0, z1 = double(2, n, CHANNELS, 4, 4).unbind()
    t = torch.linspace(0.01, 0.93, n, dtype=torch.float64)
    found = latent_consistency(field, z0, z1, t, **flow(settings))
    found.loss.backward()
    ours = gradients(field)
    field.zero_grad()
    expected, f = reference_consistency(field, z0, z1, t, settings)
    expected.backward()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.f, torch.stack(f))
    torch.testing.assert_close(ours, gradients(field))
    parts = found.consistency + settings.alpha * found.velocity
    torch.testing.assert_close(parts.mean(), found.loss)
    assert torch.equal(found.past_end, t + settings.time_step >= found.end)


VARIANCE = 0.6
"""Of HQ latents of variance 1 the coarse estimate explains so much."""


def gaussian_pair(sigma_s: float) -> tuple[Tensor, Tensor]:
    """Eight pairs with exactly the second moments of the Gaussian pair: all signs of the coarse
    latent, of its error and of the noise."""
    signs = torch.cartesian_prod(*3 * [torch.tensor([-1.0, 1.0], dtype=torch.float64)])
    coarse, error = VARIANCE**0.5 * signs[:, 0], (1 - VARIANCE) ** 0.5 * signs[:, 1]
    return (coarse + sigma_s * signs[:, 2])[:, None], (coarse + error)[:, None]


class LearntSlope:
    """The field that latent consistency learns of that pair (α = 0), linear in z: at t it carries z
    to A(t) z, where A(t) is the product of the path's regressions on itself, Δt apart."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def covariance(self, s: float, t: float) -> float:
        def weights(time: float) -> tuple[float, float]:
            return 1 - (1 - self.settings.sigma_min) * time, time

        (a, b), (c, d) = weights(s), weights(t)
        var0 = VARIANCE + self.settings.sigma_s**2
        return a * c * var0 + (a * d + b * c) * VARIANCE + b * d

    def end(self, t: float) -> float:
        return (math.floor(t * self.settings.segments + 1e-9) + 1) / self.settings.segments

    def slope(self, t: float) -> float:
        end, product = self.end(t), 1.0
        while end - t > 1e-9:
            later = min(t + self.settings.time_step, end)
            product *= self.covariance(later, t) / self.covariance(t, t)
            t = later
        return product

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        slopes = [(self.slope(time) - 1) / (self.end(time) - time) for time in t.tolist()]
        return torch.tensor(slopes, dtype=z.dtype)[:, None] * z


@pytest.mark.parametrize("t", [0.01, 0.21, 0.3, 0.49, 0.88])
def test_the_target_of_a_gaussian_pair_regresses_to_the_products_slope(t: float) -> None:
    """So that field is where training ends: it predicts the mean of its own targets."""
    settings = Settings(alpha=0.0)
    learnt, (z0, z1) = LearntSlope(settings), gaussian_pair(settings.sigma_s)
    times = torch.full((len(z0),), t, dtype=torch.float64)
    found = latent_consistency(learnt, z0, z1, times, **flow(settings))
    z_t = interpolant(z0, z1, times, settings.sigma_min)
    regressed = (found.target * z_t).sum() / z_t.square().sum()
    assert regressed.item() == pytest.approx(learnt.slope(t), rel=1e-12)
    torch.testing.assert_close(found.f, regressed * z_t)


@pytest.mark.parametrize("time_step", [0.01, 0.05, 0.2])
def test_a_step_for_each_segment_is_worth_flow_matching_in_steps_of_the_time_step(
    time_step: float,
) -> None:
    settings = Settings(segments=5, time_step=time_step, alpha=0.0)
    learnt, (z0, z1) = LearntSlope(settings), gaussian_pair(settings.sigma_s)

    def marginal(z: Tensor, t: Tensor) -> Tensor:
        z_t = interpolant(z0, z1, t, settings.sigma_min)
        slope = z1 - (1 - settings.sigma_min) * z0
        return (slope * z_t).sum() / z_t.square().sum() * z

    few = euler(learnt, z0, settings.segments)
    torch.testing.assert_close(few, euler(marginal, z0, round(1 / time_step)))


@pytest.mark.parametrize(
    ("time_step", "std", "error"),
    [(0.01, 0.998, 0.462), (0.05, 0.988, 0.458), (0.1, 0.977, 0.453), (0.2, 0.958, 0.446)],
)
def test_the_time_step_sets_sharpness_against_error(
    time_step: float, std: float, error: float
) -> None:
    """Where a deviation of 1 is perfect perception; figures worked out apart from this code."""
    settings = Settings(time_step=time_step, alpha=0.0, sigma_min=0.0)
    z0, z1 = gaussian_pair(settings.sigma_s)
    restored = euler(LearntSlope(settings), z0, settings.segments)
    assert restored.square().mean().sqrt().item() == pytest.approx(std, abs=6e-4)
    assert (restored - z1).square().mean().item() == pytest.approx(error, abs=6e-4)


def inputs(n: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = torch.linspace(0, 0.95, n, dtype=torch.float64)
    noise = double(n, CHANNELS, 4, 4, seed=3)
    return pixels(n, 3, 32, 32, seed=1), pixels(n, 3, 32, 32, seed=2), t, noise


def plain_losses(nets: Any, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """L2, LCFM and MSE, each sample's last step evaluated whether it is of length 0 or not."""
    x, y, t, noise = inputs()
    coarse, z1 = nets.coarse(nets.encoder(y)), nets.frozen_encoder(x).detach()
    z0 = coarse.detach() + settings.sigma_s * noise
    lcfm, ends = reference_consistency(nets.field, z0, z1, t, settings)
    f = torch.stack(ends).detach()
    end = segment_ends(t, settings.segments)
    estimate = f + (1 - end)[:, None, None, None] * nets.field(f, end)
    return ((coarse - z1) ** 2).mean(), lcfm, ((x - nets.decoder(estimate)) ** 2).mean()


@pytest.mark.parametrize("segments", [1, 3])
def test_all_losses_and_gradients_are_those_of_the_plain_form(segments: int) -> None:
    nets, settings = small_networks(), Settings(segments=segments)
    found = elir_losses(nets, *inputs(), settings)
    found.total.backward()
    ours = [gradients(getattr(nets, name)) for name in TRAINED]
    for name in TRAINED:
        getattr(nets, name).zero_grad()
    l2, lcfm, mse = plain_losses(nets, settings)
    total = l2 + (1 - settings.beta) * lcfm + settings.beta * mse
    total.backward()
    torch.testing.assert_close((found.l2, found.lcfm, found.mse), (l2, lcfm, mse))
    torch.testing.assert_close(found.total, total)
    torch.testing.assert_close(ours, [gradients(getattr(nets, name)) for name in TRAINED])


@pytest.mark.parametrize(
    ("term", "reached"), [("l2", ("encoder", "coarse")), ("lcfm", ("field",)), ("mse", ("field",))]
)
def test_each_loss_reaches_its_own_networks_only(term: str, reached: tuple[str, ...]) -> None:
    nets = small_networks()
    for part in (nets.frozen_encoder, nets.decoder):
        assert not any(p.requires_grad for p in part.parameters())
    getattr(elir_losses(nets, *inputs(), Settings()), term).backward()
    for name, part in vars(nets).items():
        found = gradients(part)
        assert bool(found) == (name in reached), name
        assert all(one.any() for one in found)


@pytest.mark.parametrize(("segments", "times"), [(3, (0.7, 0.95)), (1, (0.0, 0.95))])
def test_the_pixel_error_trains_nothing_in_the_last_segment(
    segments: int, times: tuple[float, float]
) -> None:
    nets, (x, y, _, noise) = small_networks(), inputs()
    t = torch.linspace(*times, len(x), dtype=torch.float64)
    mse = elir_losses(nets, x, y, t, noise, Settings(segments=segments)).mse
    assert mse > 0 and not mse.requires_grad


def test_the_total_is_linear_in_beta_and_the_coarse_error_depends_on_nothing_else() -> None:
    nets, (x, y, t, noise) = small_networks(), inputs()
    found = {b: elir_losses(nets, x, y, t, noise, Settings(beta=b)) for b in (0.2, 0.6, 1.0)}
    middle = (found[0.2].total + found[1.0].total) / 2
    torch.testing.assert_close(found[0.6].total, middle)
    none = elir_losses(nets, x, y, t, noise, Settings(beta=0.0))
    torch.testing.assert_close(none.total, none.l2 + none.lcfm)
    assert none.mse == 0
    other = elir_losses(nets, x, y, t.flip(0), 2 * noise, Settings(beta=0.9))
    assert torch.equal(other.l2, found[0.2].l2)


class Counted:
    """A network that notes how many samples each call has."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.calls: list[int] = []

    def __call__(self, z: Tensor, *t: Tensor) -> Tensor:
        self.calls.append(len(z))
        return self.network(z, *t)


@pytest.mark.parametrize(
    ("beta", "flow", "field", "decoded"),
    [
        (0.3, "latent_consistency", [6, 6, 4], [4, 2]),
        (0.0, "latent_consistency", [6, 6], []),
        (0.3, "flow_matching", [6], [6]),
        (0.3, "none", [], []),
    ],
)
def test_no_network_is_evaluated_more_often_than_its_loss_needs(
    beta: float, flow: Any, field: list[int], decoded: list[int]
) -> None:
    nets = SimpleNamespace(**{name: Counted(net) for name, net in vars(small_networks()).items()})
    losses = elir_losses(nets, *inputs(), Settings(beta=beta), flow=flow)
    assert nets.field.calls == field and nets.decoder.calls == decoded
    assert nets.encoder.calls == nets.frozen_encoder.calls == nets.coarse.calls == [6]
    assert (losses.consistency is None) == (flow != "latent_consistency")


def test_flow_matching_in_its_place_predicts_the_slope_and_decodes_one_step() -> None:
    nets, settings, (x, y, t, noise) = small_networks(), Settings(), inputs()
    found = elir_losses(nets, x, y, t, noise, settings, flow="flow_matching")
    z1 = nets.frozen_encoder(x)
    z0 = nets.coarse(nets.encoder(y)).detach() + settings.sigma_s * noise
    z_t = interpolant(z0, z1, t, settings.sigma_min)
    v = nets.field(z_t, t)
    slope = z1 - (1 - settings.sigma_min) * z0
    torch.testing.assert_close(found.lcfm, ((v - slope) ** 2).mean())
    estimate = z_t + (1 - t)[:, None, None, None] * v
    torch.testing.assert_close(found.mse, ((x - nets.decoder(estimate)) ** 2).mean())
    assert found.mse.requires_grad
    alone = elir_losses(nets, x, y, t, noise, replace(settings, beta=0.9), flow="none")
    assert torch.equal(alone.total, found.l2)
