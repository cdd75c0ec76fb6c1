"""Every objective has the same loss and gradient on a GPU as on the CPU; compiled ones too."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from datagen.samples.codecs import DctCodec
from tests.support.distance import distance, gradient
from tests.support.networks import ATTENTION, tiny_net
from training.data.loader import Batch
from training.data.planned import Position
from training.flowmap.objective import DynamicWeighting, FlowMapObjective, FlowMapStageModel
from training.losses.perceptual import PatchPerceptualLoss, charbonnier
from training.settings.objective import FlowMatching, Guidance, ObjectiveSettings, SelfDistillation
from training.trainer import Losses

N, CHANNELS, SIDE = 8, 192, 4
SAME_LOSS, SAME_GRADIENT = 1e-4, 1e-3
"""Relative, in fp32."""
CPU = torch.device("cpu")
LEVELS = 3


def _distillation(formulation: str, guidance: Guidance | None) -> SelfDistillation:
    return SelfDistillation.model_validate(
        {"formulation": formulation, "guidance": guidance, "time_grid_levels": LEVELS}
        | {"flow_matching_fraction": 0.5}
    )


GUIDED = Guidance(negative_fraction=0.4)
OBJECTIVES: dict[str, ObjectiveSettings] = {
    "fm": FlowMatching(time_grid_levels=LEVELS),
    "fm-guided": FlowMatching(time_grid_levels=LEVELS, guidance=GUIDED),
    **{
        f"{name}{suffix}": _distillation(formulation, guidance)
        for name, formulation in {"ssd": "shortcut", "esd": "eulerian", "lsd": "lagrangian"}.items()
        for suffix, guidance in {"": None, "-guided": GUIDED}.items()
    },
}


def _model(place: torch.device, compiled: str = "none") -> FlowMapStageModel:
    net = tiny_net(
        channels=CHANNELS, guidance_conditioning=True, time_embedding_scale=10.0, **ATTENTION
    )
    weighting = DynamicWeighting()
    torch.nn.init.normal_(weighting.last.weight, std=0.1)
    return FlowMapStageModel(net, weighting, compiled=compiled).to(place)  # type: ignore[arg-type]


def _batch(place: torch.device) -> Batch:
    draws = torch.Generator().manual_seed(0)
    hq, lq, neg = torch.randn(3, N, CHANNELS, SIDE, SIDE, generator=draws).half()
    pixels = torch.randint(0, 256, (N, 3, 8 * SIDE, 8 * SIDE), generator=draws, dtype=torch.uint8)
    return Batch(("",) * N, {"hq": hq, "lq": lq, "neg": neg}, Position(), hq_pixels=pixels).to(
        place
    )


def _trained(
    settings: ObjectiveSettings, place: torch.device, *, compiled: str = "none"
) -> tuple[Losses, torch.Tensor]:
    """Losses and gradient of a batch, with a perceptual loss beside the objective."""
    perceptual = PatchPerceptualLoss(
        partial(charbonnier, epsilon=1e-3), DctCodec(device=str(place)), strength=10.0, patch=16
    )
    model = _model(place, compiled)
    objective = FlowMapObjective(settings, perceptual_loss=perceptual)
    losses = objective(model, _batch(place), torch.Generator().manual_seed(1))
    losses.total.backward()
    return losses, gradient(model)


def _assert_same(found: tuple[Losses, torch.Tensor], expected: tuple[Losses, torch.Tensor]) -> None:
    losses, others = found[0], expected[0]
    for name, term in losses.terms.items():
        other = others.terms[name]
        assert term.count == other.count, name
        assert float(term.sum) == pytest.approx(float(other.sum), rel=SAME_LOSS, abs=1e-5), name
    assert distance(found[1], expected[1]) < SAME_GRADIENT


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_equal_the_cpus(device: torch.device, name: str) -> None:
    _assert_same(_trained(OBJECTIVES[name], device), _trained(OBJECTIVES[name], CPU))


@pytest.mark.gpu
def test_a_compiled_student_equals_the_cpus() -> None:
    """test_objectives.py rehearses it with a backend that needs no compiler. One objective is
    enough, as the student's pass is that of all; compiling it may take a minute."""
    settings = OBJECTIVES["esd-guided"]
    compiled = _trained(settings, torch.device("cuda"), compiled="student")
    _assert_same(compiled, _trained(settings, CPU))
