"""The objective of a batch against a naive reference of its formulas; its costs; the weighting."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jvp as reverse_mode_jvp

from datagen.errors import FlowmapsrError
from datagen.samples.codecs import DctCodec
from tests.support.networks import ATTENTION, tiny_net
from tests.support.tiny import WARMUP
from training.data.loader import Batch
from training.data.planned import Position
from training.flowmap.conditions import draw_conditions
from training.flowmap.interpolant import sample_times
from training.flowmap.objective import (
    DynamicWeighting,
    FlowMapObjective,
    FlowMapStageModel,
    weighted_loss,
)
from training.flowmap.prompts import NEGATIVE, POSITIVE
from training.flowmap.system import FlowMapStage
from training.losses.perceptual import PatchPerceptualLoss, charbonnier
from training.settings.objective import (
    FlowMatching,
    Guidance,
    SelfDistillation,
)
from training.settings.stage import StageSettings
from training.trainer import Losses

N = 8
LEVELS = 3
GUIDANCE = Guidance(negative_fraction=0.4, strength=(1.0, 3.5))
SHORTCUT = {"formulation": "shortcut"}
EULERIAN = {"formulation": "eulerian"}
LAGRANGIAN = {"formulation": "lagrangian"}
CONDITIONAL = {"formulation": "lagrangian", "lsd_velocity": "conditional"}
FORMULATIONS = pytest.mark.parametrize(
    "formulation", [SHORTCUT, EULERIAN, LAGRANGIAN, CONDITIONAL], ids=["ssd", "esd", "lsd", "paper"]
)
GUIDED = pytest.mark.parametrize("guidance", [None, GUIDANCE], ids=["plain", "guided"])


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    hq, lq, neg = torch.randn(3, N, 12, 4, 4, generator=generator)
    keys = tuple(map(str, range(N)))
    return Batch(keys, {"hq": hq, "lq": lq, "neg": neg}, Position())


@pytest.fixture
def model() -> FlowMapStageModel:
    net = tiny_net(guidance_conditioning=True, time_embedding_scale=10.0)
    weighting = DynamicWeighting()
    torch.nn.init.normal_(weighting.last.weight, std=0.1)
    return FlowMapStageModel(net, weighting)


def _naive_loss(model: FlowMapStageModel, batch: Batch, settings: Any, *, seed: int) -> Tensor:
    """E[exp(-phi) |u - target|^2 + phi], sample by sample, as in the equations."""
    generator = torch.Generator().manual_seed(seed)
    share = settings.flow_matching_fraction if isinstance(settings, SelfDistillation) else 1.0
    ssd = not isinstance(settings, SelfDistillation) or settings.formulation == "shortcut"
    t, s, is_fm = sample_times(
        N,
        levels=LEVELS,
        flow_matching_fraction=share,
        kind="shortcut" if ssd else "uniform",
        generator=generator,
    )
    drawn = draw_conditions(settings.guidance, N, generator)
    assert model.weighting is not None
    losses = []
    for i in range(N):
        one = slice(i, i + 1)
        negative = bool(drawn.prompt[i] == NEGATIVE)
        x0, x1 = (batch.latents["neg"] if negative else batch.hq)[one], batch.lq[one]  # type: ignore[index]
        ti, si, w, prompt = t[one], s[one], drawn.w[one], drawn.prompt[one]

        def u(x: Tensor, t: Tensor, s: Tensor, prompt: Tensor = prompt, w: Tensor = w) -> Tensor:
            return model.net(x, t, s, prompt, w)

        def bad(x: Tensor, t: Tensor) -> Tensor:
            return model.net(x, t, t, torch.tensor([NEGATIVE]), torch.ones(1))

        target = _naive_target(settings, u, bad, x0, x1, ti, si, w, bool(is_fm[i]))
        error = (u((1 - ti) * x0 + ti * x1, ti, si) - target.detach()).square().mean()
        phi = model.weighting(ti, si)[0]
        losses.append(torch.exp(-phi) * error + phi)
    return torch.stack(losses).mean()


def _naive_target(
    settings: Any,
    u: Callable[[Tensor, Tensor, Tensor], Tensor],
    bad: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    s: Tensor,
    w: Tensor,
    is_fm: bool,
) -> Tensor:
    """The row of the method's table for one sample; `bad` is u(x, t, t, c-)."""
    x_t, v = (1 - t) * x0 + t * x1, x1 - x0
    at_t = w * v + (1 - w) * bad(x_t, t)
    if is_fm:
        return at_t
    if settings.formulation == "shortcut":
        m = (t + s) / 2
        foot = bool(t - s == 2.0**-LEVELS)
        first = u(x_t, t, t if foot else m)
        return first / 2 + u(x_t - (t - m) * first, m, m if foot else s) / 2
    if settings.formulation == "eulerian":
        # By two reverse passes, independent of forward mode.
        _, slope = reverse_mode_jvp(lambda x, t: u(x, t, s), (x_t, t), (at_t, torch.ones(1)))
        return at_t - (t - s) * slope
    x_s = x_t - (t - s) * u(x_t, t, s)
    _, slope = reverse_mode_jvp(lambda s: u(x_t, t, s), (s,), (torch.ones(1),))
    if settings.lsd_velocity == "model":
        return u(x_s, s, s) + (t - s) * slope
    return w * v + (1 - w) * bad(x_s, s) + (t - s) * slope


def _objective(settings: Any) -> FlowMapObjective:
    return FlowMapObjective(settings, perceptual_loss=None)


def _self_distillation(
    formulation: dict[str, str], guidance: Guidance | None, *, share: float = 0.75
) -> SelfDistillation:
    return SelfDistillation.model_validate(
        {
            "time_grid_levels": LEVELS,
            "flow_matching_fraction": share,
            "guidance": guidance,
            **formulation,
        }
    )


def _assert_equals_the_formula(model: FlowMapStageModel, batch: Batch, settings: Any) -> None:
    losses = _objective(settings)(model, batch, torch.Generator().manual_seed(7))
    losses.total.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    naive = _naive_loss(model, batch, settings, seed=7)
    naive.backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(losses.total, naive, rtol=1e-5, atol=1e-5)
    assert len(gradients) == len(expected) > 0
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


@GUIDED
def test_flow_matching_loss_and_gradient_equal_the_formula(
    model: FlowMapStageModel, batch: Batch, guidance: Guidance | None
) -> None:
    _assert_equals_the_formula(
        model, batch, FlowMatching(time_grid_levels=LEVELS, guidance=guidance)
    )


@FORMULATIONS
@GUIDED
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_self_distillation_loss_and_gradient_equal_the_formula(
    model: FlowMapStageModel,
    batch: Batch,
    formulation: dict[str, str],
    guidance: Guidance | None,
    share: float,
) -> None:
    settings = _self_distillation(formulation, guidance, share=share)
    _assert_equals_the_formula(model, batch, settings)


Call = tuple[int, bool]
"""Samples, and whether with gradient."""


def _count_evaluations(model: FlowMapStageModel, run: Callable[[], Losses]) -> list[Call]:
    """Every network evaluation during `run`, a JVP being one."""
    calls: list[Call] = []
    hook = model.net.register_forward_pre_hook(
        lambda module, arguments: calls.append((len(arguments[0]), torch.is_grad_enabled()))
    )
    run()
    hook.remove()
    return sorted(calls)


@pytest.mark.parametrize(
    ("formulation", "teacher", "negative"),
    [
        (SHORTCUT, 2, 6),
        (EULERIAN, 1, 8),  # the negative velocity of both kinds of samples in one pass
        (LAGRANGIAN, 2, 6),
        (CONDITIONAL, 1, 6),
    ],
    ids=["ssd", "esd", "lsd", "paper"],
)
def test_one_student_pass_over_all_and_teacher_passes_over_the_samples_that_need_them(
    model: FlowMapStageModel, batch: Batch, formulation: dict[str, str], teacher: int, negative: int
) -> None:
    def calls(guidance: Guidance | None) -> list[Call]:
        objective = _objective(_self_distillation(formulation, guidance))
        generator = torch.Generator().manual_seed(0)
        return _count_evaluations(model, lambda: objective(model, batch, generator))

    plain = [(2, False)] * teacher
    assert calls(None) == sorted([(8, True), *plain])
    all_positive = Guidance(negative_fraction=0.0, strength=(2.0, 2.0))
    # The paper's Lagrangian target is guided where its step ends, in a separate pass.
    guided = [*plain, (negative, False), *([(2, False)] if formulation == CONDITIONAL else [])]
    assert calls(all_positive) == sorted([(8, True), *guided])
    all_negative = Guidance(negative_fraction=1.0)
    no_strength = Guidance(negative_fraction=0.0, strength=(1.0, 1.0))
    assert calls(all_negative) == calls(no_strength) == calls(None)


def test_flow_matching_needs_no_extra_evaluation_and_guided_one(
    model: FlowMapStageModel, batch: Batch
) -> None:
    def calls(guidance: Guidance | None) -> list[Call]:
        objective = _objective(FlowMatching(time_grid_levels=LEVELS, guidance=guidance))
        generator = torch.Generator().manual_seed(0)
        return _count_evaluations(model, lambda: objective(model, batch, generator))

    assert calls(None) == [(8, True)]
    assert calls(Guidance(negative_fraction=0.0)) == [(8, False), (8, True)]


def test_conditions_follow_their_probabilities() -> None:
    drawn = draw_conditions(
        Guidance(negative_fraction=0.1, strength=(1.0, 3.5)),
        20_000,
        torch.Generator().manual_seed(0),
    )
    negative = drawn.prompt == NEGATIVE
    assert negative.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (drawn.w[negative] == 1).all()
    w = drawn.w[~negative]
    assert w.min() >= 1 and w.max() <= 3.5
    assert w.mean().item() == pytest.approx(2.25, abs=0.02)
    assert w.std().item() == pytest.approx(2.5 / 12**0.5, abs=0.02)
    fixed = draw_conditions(
        Guidance(negative_fraction=0.0, strength=(2.0, 2.0)), 9, torch.Generator().manual_seed(0)
    )
    assert torch.equal(fixed.w, torch.full((9,), 2.0)) and (fixed.prompt == POSITIVE).all()


def test_negative_samples_are_after_the_negative_latents_and_no_pixels(
    model: FlowMapStageModel, batch: Batch
) -> None:
    """With p_neg = 1 the loss does not see HQ, neither its latents nor its pixels."""
    model.weighting = None
    perceptual_loss = PatchPerceptualLoss(
        partial(charbonnier, epsilon=1e-3), DctCodec(), strength=10.0, patch=512
    )
    settings = FlowMatching(time_grid_levels=LEVELS, guidance=Guidance(negative_fraction=1.0))
    objective = FlowMapObjective(settings, perceptual_loss=perceptual_loss)
    pixels = torch.zeros(N, 3, 32, 32, dtype=torch.uint8)
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    same = replace(batch, hq_pixels=pixels)
    other = replace(same, latents={**batch.latents, "hq": 0 * batch.hq})
    one, two = (objective(model, b, g) for b, g in zip((same, other), generators, strict=True))
    assert torch.equal(one.total, two.total)
    term = one.terms["loss/perceptual"]
    assert (term.sum.item(), term.count) == (0, 0)


@FORMULATIONS
def test_attention_with_a_checkpointed_student_trains_with_each_formulation(
    batch: Batch, formulation: dict[str, str]
) -> None:
    net = tiny_net(guidance_conditioning=True, time_embedding_scale=10.0, **ATTENTION)
    model = FlowMapStageModel(net, None)
    objective = _objective(_self_distillation(formulation, GUIDANCE))
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.net.unet.enable_gradient_checkpointing()
        model.zero_grad()
        objective(model, batch, torch.Generator().manual_seed(0)).total.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-6)


def test_reported_sums_are_means_over_their_own_samples(
    model: FlowMapStageModel, batch: Batch
) -> None:
    model.weighting = None
    settings = _self_distillation(SHORTCUT, None)
    losses = _objective(settings)(model, batch, torch.Generator().manual_seed(0))
    assert tuple(losses.terms) == FlowMapObjective.terms
    assert [term.count for term in losses.terms.values()] == [8, 6, 2, 0, 0]
    stacked = losses.stacked((*FlowMapObjective.terms, "loss/of another step"))
    assert stacked[-1].tolist() == [0, 0] and stacked.dtype == torch.float64
    total, fm, sd = (sums / 8 for sums in stacked[:3, 0].tolist())
    assert fm + sd == pytest.approx(losses.total.item(), rel=1e-5)
    assert total == pytest.approx(losses.total.item(), rel=1e-5)


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


def test_a_compiled_student_leaves_the_derivative_to_the_plain_network(
    model: FlowMapStageModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a GPU, by a backend that needs no compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    objective = _objective(_self_distillation(EULERIAN, GUIDANCE))
    compiled = FlowMapStageModel(model.net, model.weighting, compiled="student")
    assert compiled.state_dict().keys() == model.state_dict().keys()
    assert compiled.teacher is model.net and compiled.student is not model.net
    found = []
    for one in (model, compiled):
        one.zero_grad()
        loss = objective(one, batch, torch.Generator().manual_seed(0)).total
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None])
        found.append((loss.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_compiling_without_a_gpu_is_refused() -> None:
    stage = StageSettings.model_validate({**WARMUP, "compile": "student"})
    inputs = SimpleNamespace(settings=stage, device=torch.device("cpu"))
    with pytest.raises(FlowmapsrError, match="compile=student works on a GPU only.*compile=none"):
        FlowMapStage(inputs, None)
