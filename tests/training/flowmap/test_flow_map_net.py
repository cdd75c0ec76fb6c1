"""The network: size of the full model, its conditions, and what an untrained one does."""

from __future__ import annotations

import pytest
import torch

from tests.support.networks import ATTENTION, tiny_net
from training.flowmap.interpolant import sample
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import NEGATIVE, POSITIVE, stand_in_embeddings
from training.settings.model import ModelSettings


def test_the_full_size_model_has_2_43_billion_parameters() -> None:
    with torch.device("meta"):
        net = FlowMapNet(ModelSettings(), latent_channels=4)
    assert sum(p.numel() for p in net.parameters()) / 1e9 == pytest.approx(2.43, abs=0.005)


def test_an_untrained_model_returns_its_input(tiny_model: ModelSettings) -> None:
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(sample(FlowMapNet(tiny_model, latent_channels=4), x, 2), x)


def test_the_output_depends_on_t_s_and_the_prompt() -> None:
    net, x = tiny_net(channels=4), torch.randn(2, 4, 8, 8)
    one, half = torch.ones(2), torch.full((2,), 0.5)
    with torch.no_grad():
        base = net(x, one, half)
        positive = net(x, one, half, torch.tensor([POSITIVE] * 2))
        others = [
            net(x, half, half),
            net(x, one, one),
            net(x, one, half, torch.tensor([NEGATIVE] * 2)),
        ]
    assert torch.equal(base, positive)
    for other in others:
        assert (other - base).abs().max() > 1e-4


def test_the_guidance_strength_is_an_input_where_the_recipe_says_so() -> None:
    net = tiny_net(channels=4, guidance_conditioning=True)
    x, t = torch.randn(2, 4, 8, 8), torch.ones(2)
    with torch.no_grad():
        plain, none, strong = (net(x, t, t, None, w) for w in (t, None, 3 * t))
    assert torch.equal(plain, none)
    assert (strong - plain).abs().max() > 1e-4
    with torch.no_grad():
        assert torch.equal(net(x, t, t), none)
        assert torch.equal(net.velocity(3.0)(x, t, t), strong)


def test_attention_blocks_run_without_text_tokens() -> None:
    net = tiny_net(channels=4, **ATTENTION)
    assert net(torch.randn(1, 4, 8, 8), torch.ones(1), torch.zeros(1)).shape == (1, 4, 8, 8)


def test_velocities_are_float32_whatever_the_weights_are() -> None:
    net = tiny_net(channels=4).to(torch.bfloat16)
    assert net(torch.randn(1, 4, 8, 8), torch.ones(1), torch.ones(1)).dtype == torch.float32


def test_stand_in_embeddings_are_fixed_and_distinct() -> None:
    embeddings = stand_in_embeddings(1280)
    assert torch.equal(embeddings, stand_in_embeddings(1280))
    cosine = torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0)
    assert abs(cosine) < 0.1
    assert embeddings[0, :3].tolist() == pytest.approx([0.701455, -0.522647, -0.053213], abs=1e-6)
