"""The adversarial losses against closed forms, the discriminator, and converged scores."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.support.gaussian import GaussianPair
from training.data.loader import Batch
from training.data.planned import Position
from training.flowmap.adversarial import (
    Discriminator,
    discriminator_loss,
    generator_loss,
    two_step_prediction,
)
from training.flowmap.adversarial_trainer import (
    AdversarialTrainer,
    ScoreAverages,
    score_terms,
    turn,
)
from training.flowmap.network import FlowMapNet
from training.flowmap.objective import FlowMapObjective, FlowMapStageModel
from training.settings.adversarial import (
    AdversarialSettings,
    ConvergenceSettings,
    DiscriminatorSettings,
)
from training.settings.model import ModelSettings
from training.settings.objective import FlowMatching
from training.settings.stage import StageSettings


@pytest.fixture
def scores() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    fake, real = torch.randn(2, 4, 1, 3, 5, generator=generator, dtype=torch.float64)
    return fake, real


def test_losses_are_the_relativistic_formulas(scores: tuple[Tensor, Tensor]) -> None:
    fake, real = scores
    pairs = list(zip(fake.flatten().tolist(), real.flatten().tolist(), strict=True))
    by_hand = [math.log(1 + math.exp(r - f)) for f, r in pairs]
    assert generator_loss(fake, real).item() == pytest.approx(sum(by_hand) / len(by_hand))
    by_hand = [math.log(1 + math.exp(f - r)) for f, r in pairs]
    assert discriminator_loss(fake, real).item() == pytest.approx(sum(by_hand) / len(by_hand))


@pytest.mark.parametrize("loss", [generator_loss, discriminator_loss])
def test_losses_are_log_two_at_equal_scores_and_ignore_a_constant(
    loss: type[Tensor], scores: tuple[Tensor, Tensor]
) -> None:
    fake, real = scores
    assert loss(real, real).item() == pytest.approx(math.log(2))
    torch.testing.assert_close(loss(fake + 3, real + 3), loss(fake, real))
    assert not torch.isclose(loss(fake + 3, real), loss(fake, real))


def test_the_losses_pull_the_scores_apart_in_opposite_ways(scores: tuple[Tensor, Tensor]) -> None:
    fake, real = (x.clone().requires_grad_() for x in scores)
    generator_loss(fake, real).backward()
    assert fake.grad is not None and bool((fake.grad < 0).all())  # fakes should score higher
    fake.grad = None
    discriminator_loss(fake, real).backward()
    assert bool((fake.grad > 0).all())  # type: ignore[attr-defined]


def test_two_steps_of_the_exact_map_give_the_exact_prediction() -> None:
    pair = GaussianPair(m0=0.5, m1=-1.0, s0=1.5, s1=0.7, rho=0.4)
    x1 = torch.randn(64, 3, dtype=torch.float64)
    one, zero = x1.new_ones(64), x1.new_zeros(64)
    expected = pair.exact_map(x1, one, zero)
    torch.testing.assert_close(two_step_prediction(pair.u, x1), expected)


def test_the_gradient_flows_through_the_second_step_only() -> None:
    """u = a t x gives x_half = x1 - a x1 / 2 (detached) and x0 = x_half - a x_half / 4."""
    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x1 = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    calls: list[bool] = []

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return a * t[:, None] * x

    two_step_prediction(u, x1).sum().backward()
    assert calls == [False, True]
    half = x1.sum().item() * (1 - 0.3 / 2)
    assert a.grad is not None and a.grad.item() == pytest.approx(-half / 4)


def test_the_discriminator_has_the_papers_size_and_one_score_a_patch() -> None:
    discriminator = Discriminator(DiscriminatorSettings(), latent_channels=4)
    assert sum(p.numel() for p in discriminator.parameters()) == 2_767_552  # 2.77 M
    settings = DiscriminatorSettings()
    for side in (24, 32, 64):
        shape = discriminator(torch.randn(2, 4, side, 32)).shape
        assert shape == (2, 1, settings.patches(side), settings.patches(32))
    kinds = [type(layer).__name__ for layer in discriminator.layers]
    assert kinds == ["Conv2d", "SiLU", *["Conv2d", "GroupNorm", "SiLU"] * 3, "Conv2d"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"discriminator": {"strides": [2, 2]}}, "strides needs 5 values"),
        ({"discriminator": {"channels": [8, 20], "strides": [2, 1, 1]}}, "divisible by norm_grou"),
        ({"lora": {"rank": 0}}, "greater than or equal to 1"),
        ({"lora": {"target_modules": []}}, "at least 1 item"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdversarialSettings.model_validate(values)


def test_updates_alternate_after_the_discriminators_warm_up() -> None:
    turns = [turn(step, warmup=3)[0] for step in range(9)]
    assert "".join(turns) == "dddgdgdgd"


def test_a_generators_step_costs_two_evaluations_more_one_of_them_with_gradient(
    tiny_model: ModelSettings,
) -> None:
    model = FlowMapStageModel(FlowMapNet(tiny_model, latent_channels=12), None)
    settings = DiscriminatorSettings(channels=(8,), strides=(1, 1), norm_groups=4)
    objective = FlowMatching(time_grid_levels=2)
    trainer = AdversarialTrainer(
        SimpleNamespace(module=model),
        SimpleNamespace(module=Discriminator(settings, latent_channels=12)),
        FlowMapObjective(objective, perceptual_loss=None),
        stage=StageSettings(name="gan", objective=objective, steps=1000),
        settings=AdversarialSettings(),
    )
    hq, lq, neg = torch.randn(3, 2, 12, 4, 4)
    calls: list[tuple[float, float, bool]] = []
    model.net.register_forward_pre_hook(
        lambda module, inputs: calls.append(
            (inputs[1][0].item(), inputs[2][0].item(), torch.is_grad_enabled())
        )
    )
    batch = Batch(("a", "b"), {"hq": hq, "lq": lq, "neg": neg}, Position())
    losses = trainer.generator_losses(model, batch, torch.Generator().manual_seed(0))
    named = {name: (term.sum.item(), term.count) for name, term in losses.terms.items()}
    assert named["loss/total"] == pytest.approx((2 * losses.total.item(), 2))
    parts = named["gan/generator"][0] + named["loss/fm"][0]
    assert named["loss/total"][0] == pytest.approx(parts, rel=1e-5)
    assert calls[1:] == [(1.0, 0.5, False), (0.5, 0.0, True)]
    assert len(calls) == 3 and calls[0][2]


def test_score_terms_are_means_over_samples(scores: tuple[Tensor, Tensor]) -> None:
    fake, real = scores
    terms = score_terms(fake, real)
    means = {name: term.sum.item() / term.count for name, term in terms.items()}
    assert {term.count for term in terms.values()} == {4}
    assert means == pytest.approx(
        {
            "gan/discriminator": discriminator_loss(fake, real).item(),
            "gan/generator": generator_loss(fake, real).item(),
            "gan/real_score": real.mean().item(),
            "gan/fake_score": fake.mean().item(),
        }
    )


def test_averages_meet_when_the_window_is_full_and_the_lead_is_gone() -> None:
    averages = ScoreAverages(ConvergenceSettings(window=3, tolerance=0.1))
    leads = [0.0, 0.0, 0.9, 0.2, 0.1, -0.1, -0.5, -0.6]
    met, told = [], []
    for lead in leads:
        averages.add(real=5 + lead, fake=5)
        met.append(averages.met)
        told.append(averages.summary())
    # Window means: -, -, 0.3, 0.367, 0.4, 0.067, -0.167, -0.4.
    assert met == [False] * 5 + [True, False, False]
    assert "no average over 3 steps" in told[1] and "still more than 0.1" in told[4]
    assert "leads by 0.0667 on average of 3 steps, after 0.4" in told[5]
    assert "no longer tells real from fake" in told[7]


def test_scores_that_were_never_apart_have_not_met() -> None:
    averages = ScoreAverages(ConvergenceSettings(window=3, tolerance=0.1))
    for _ in range(9):
        averages.add(real=5.05, fake=5)
    assert not averages.met and "the discriminator learns nothing" in averages.summary()
    averages.add(real=5.5, fake=5)
    again = ScoreAverages(averages.settings)
    again.restore(averages.to_json())
    assert not again.met
    for _ in range(3):
        again.add(real=5.05, fake=5)
    assert again.met, "that they were apart was not restored"


def test_averages_survive_a_checkpoint_exactly() -> None:
    averages = ScoreAverages(ConvergenceSettings(window=4, tolerance=0.0))
    for step in range(7):
        averages.add(real=1 / (step + 3), fake=math.sin(step))
    restored = ScoreAverages(averages.settings)
    restored.restore(averages.to_json())
    assert restored.to_json() == averages.to_json()
    assert len(json.loads(restored.to_json())["real"]) == 4


def test_two_engines_do_what_plain_torch_does(tmp_path: Path) -> None:
    """ZeRO 0, 1 and 2, two workers with accumulation and clipping, five alternating steps."""
    target = tmp_path / "differences.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node=2", "-m", "tests.training.workers.two_engines", str(target)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for zero_stage, differences in json.loads(target.read_text()).items():
        assert differences["from plain torch"] < 2e-6, zero_stage
        assert differences["clipped"] > 0
        assert differences["lora moved"] > 1e-3 and differences["discriminator moved"] > 1e-3
