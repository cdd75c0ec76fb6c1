"""A micro step never makes the host wait for its device.

The meta device stands in for a GPU: the host cannot read its tensors at all.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datagen.samples.codecs import DctCodec
from training.data.loader import Batch
from training.data.planned import Position
from training.flowmap.network import FlowMapNet
from training.flowmap.objective import DynamicWeighting, FlowMapObjective, FlowMapStageModel
from training.losses.lpips import LpipsDistance
from training.losses.perceptual import PatchPerceptualLoss
from training.settings.model import ModelSettings
from training.settings.objective import (
    FlowMatching,
    Guidance,
    ObjectiveSettings,
    SelfDistillation,
)

DEVICE = torch.device("meta")
N = 8
GUIDANCE = Guidance(negative_fraction=0.4)
CASES: dict[str, dict[str, Any]] = {
    "fm": {},
    "ssd": {"formulation": "shortcut"},
    "esd": {"formulation": "eulerian"},
    "lsd": {"formulation": "lagrangian"},
    "paper": {"formulation": "lagrangian", "lsd_velocity": "conditional"},
}


class NoWaiting(TorchDispatchMode):
    """Refuses every operation between host and device except copies that do not wait."""

    copies = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        # Numbers of the host are arguments of a kernel, not copies.
        if len({x.device for x in tensors if x.ndim or x.device == DEVICE}) > 1:
            assert kwargs.get("non_blocking"), f"{func} waits"
            self.copies += 1
        return out


@pytest.mark.parametrize("guidance", [None, GUIDANCE], ids=["plain", "guided"])
@pytest.mark.parametrize("case", CASES)
def test_the_host_decides_alone_what_a_micro_step_computes(
    tiny_model: ModelSettings, case: str, guidance: Guidance | None
) -> None:
    settings: ObjectiveSettings = FlowMatching(guidance=guidance)
    if CASES[case]:
        settings = SelfDistillation(**CASES[case], guidance=guidance, flow_matching_fraction=0.5)
    net_settings = tiny_model.model_copy(update={"guidance_conditioning": True})
    net = FlowMapNet(net_settings, latent_channels=192)
    model = FlowMapStageModel(net, DynamicWeighting()).to(DEVICE)
    hq, lq, neg = torch.empty(3, N, 192, 4, 4)
    pixels = torch.empty(N, 3, 32, 32, dtype=torch.uint8)
    batch = Batch(
        tuple("abcdefgh"), {"hq": hq, "lq": lq, "neg": neg}, Position(), hq_pixels=pixels
    ).to(DEVICE)
    perceptual_loss = PatchPerceptualLoss(
        LpipsDistance().to(DEVICE), DctCodec(device=str(DEVICE)), strength=1.0, patch=16
    )
    objective = FlowMapObjective(settings, perceptual_loss=perceptual_loss)
    with NoWaiting() as mode:
        losses = objective(model, batch, torch.Generator().manual_seed(0))
        losses.total.backward()
    assert mode.copies
    sums = losses.stacked(objective.terms)
    assert {losses.total.device, sums.device} == {DEVICE}
