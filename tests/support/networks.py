"""Small networks with random weights in their last layer, which starts at zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.tiny import MODEL
from training.flowmap.network import FlowMapNet
from training.settings.model import ModelSettings

ATTENTION = {"transformer_layers": [0, 1], "attention_heads": [2, 4]}


def tiny_net(*, channels: int = 12, **changes: Any) -> FlowMapNet:
    """The same network at every call: `MODEL` with the changes, for latents of these channels."""
    torch.manual_seed(0)
    settings = ModelSettings.model_validate({**MODEL, **changes})
    net = FlowMapNet(settings, latent_channels=channels)
    nn.init.normal_(net.unet.conv_out.weight, std=0.1)
    return net


def flat(model: nn.Module) -> Tensor:
    """A copy of all parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()
