"""The objective of a batch against a naive reference of its formulas; its costs; the weighting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from training.interpolant import sample_times
from training.loader import Batch
from training.models.flow_map_net import FlowMapNet
from training.objectives.flow_maps import LOSS_NAMES, FlowMapObjective, Losses, TrainedModel
from training.objectives.weighting import DynamicWeighting, weighted_loss
from training.schedule import Position
from training.settings import FlowMatching, ModelSettings, SelfDistillation

N = 8
LEVELS = 3


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    hq, lq, neg = torch.randn(3, N, 12, 4, 4, generator=generator)
    keys = tuple(map(str, range(N)))
    return Batch(keys, hq, lq, neg, None, Position())


@pytest.fixture
def model(tiny_model: ModelSettings) -> TrainedModel:
    torch.manual_seed(0)
    net = FlowMapNet(tiny_model, latent_channels=12)
    torch.nn.init.normal_(net.unet.conv_out.weight, std=0.1)
    weighting = DynamicWeighting()
    torch.nn.init.normal_(weighting.last.weight, std=0.1)
    return TrainedModel(net, weighting)


def _naive_loss(model: TrainedModel, batch: Batch, *, share: float, seed: int) -> Tensor:
    """E[exp(-phi) |u - target|^2 + phi], sample by sample, as the equations stand."""
    t, s, is_fm = sample_times(
        N,
        levels=LEVELS,
        flow_matching_share=share,
        kind="shortcut",
        generator=torch.Generator().manual_seed(seed),
    )
    assert model.weighting is not None
    losses = []
    for i in range(N):
        x0, x1, ti, si = batch.hq[i : i + 1], batch.lq[i : i + 1], t[i : i + 1], s[i : i + 1]
        x_t = (1 - ti) * x0 + ti * x1
        target = x1 - x0
        if not is_fm[i]:
            with torch.no_grad():
                m = (ti + si) / 2
                foot = bool(ti - si == 2.0**-LEVELS)
                first = model.net(x_t, ti, ti if foot else m)
                x_m = x_t - (ti - m) * first
                second = model.net(x_m, m, m if foot else si)
                target = first / 2 + second / 2
        error = (model.net(x_t, ti, si) - target).square().mean()
        phi = model.weighting(ti, si)[0]
        losses.append(torch.exp(-phi) * error + phi)
    return torch.stack(losses).mean()


def _objective(share: float) -> FlowMapObjective:
    settings: Any = FlowMatching(levels=LEVELS)
    if share < 1:
        settings = SelfDistillation(levels=LEVELS, flow_matching_share=share)
    return FlowMapObjective(settings, regulariser=None)


@pytest.mark.parametrize("share", [1.0, 0.75, 0.0])
def test_loss_and_gradient_equal_the_formula(
    model: TrainedModel, batch: Batch, share: float
) -> None:
    losses = _objective(share)(model, batch, torch.Generator().manual_seed(7))
    losses.total.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    naive = _naive_loss(model, batch, share=share, seed=7)
    naive.backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(losses.total, naive, rtol=1e-5, atol=1e-5)
    assert len(gradients) == len(expected) > 0
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def _count_evaluations(model: TrainedModel, run: Callable[[], Losses]) -> list[tuple[int, bool]]:
    """(samples, with gradient) of every network evaluation during `run`."""
    calls: list[tuple[int, bool]] = []
    hook = model.net.register_forward_pre_hook(
        lambda module, arguments: calls.append((len(arguments[0]), torch.is_grad_enabled()))
    )
    run()
    hook.remove()
    return calls


def test_one_student_pass_over_all_and_two_teacher_passes_over_the_distilled_samples(
    model: TrainedModel, batch: Batch
) -> None:
    objective = _objective(0.75)
    calls = _count_evaluations(
        model, lambda: objective(model, batch, torch.Generator().manual_seed(0))
    )
    assert sorted(calls) == [(2, False), (2, False), (8, True)]


def test_flow_matching_needs_no_extra_evaluation(model: TrainedModel, batch: Batch) -> None:
    objective = _objective(1.0)
    calls = _count_evaluations(
        model, lambda: objective(model, batch, torch.Generator().manual_seed(0))
    )
    assert calls == [(8, True)]


def test_reported_sums_are_means_over_their_own_samples(model: TrainedModel, batch: Batch) -> None:
    model.weighting = None
    losses = _objective(0.75)(model, batch, torch.Generator().manual_seed(0))
    reported = dict(zip(LOSS_NAMES, losses.sums.tolist(), strict=True))
    assert [reported[name][1] for name in LOSS_NAMES] == [8, 6, 2, 0, 0]
    both = (reported["fm"][0] + reported["sd"][0]) / 8
    assert both == pytest.approx(losses.total.item(), rel=1e-5)
    assert reported["total"][0] / 8 == pytest.approx(losses.total.item(), rel=1e-5)


def test_weighting_starts_at_zero_and_is_small() -> None:
    weighting = DynamicWeighting()
    t, s = torch.rand(2, 16)
    assert torch.equal(weighting(t, s), torch.zeros(16))
    assert sum(p.numel() for p in weighting.parameters()) < 100_000


def test_weighted_loss_is_least_at_the_logarithm_of_the_loss() -> None:
    losses = torch.tensor([0.5, 2.0, 3.5], dtype=torch.float64)
    best = torch.full((3,), math.log(2.0), dtype=torch.float64)  # log of the mean
    least = weighted_loss(losses, best)
    assert least.item() == pytest.approx(1 + math.log(2.0))
    for offset in (-0.1, 0.1):
        assert weighted_loss(losses, best + offset) > least


def test_a_trained_weighting_finds_the_logarithm_of_the_loss_at_each_time() -> None:
    torch.manual_seed(0)
    weighting = DynamicWeighting()
    optimizer = torch.optim.Adam(weighting.parameters(), lr=1e-2)
    t = torch.tensor([0.25, 0.5, 1.0])
    losses = torch.tensor([0.1, 1.0, 4.0])
    for _ in range(400):
        optimizer.zero_grad()
        weighted_loss(losses, weighting(t, t)).backward()
        optimizer.step()
    torch.testing.assert_close(weighting(t, t), losses.log(), atol=0.02, rtol=0)
