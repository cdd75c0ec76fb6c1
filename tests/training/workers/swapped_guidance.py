"""`training.run` with the two prompts exchanged where the model is used, but not in training."""

from __future__ import annotations

import sys

import torch

from training.flowmap.interpolant import Velocity
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import NEGATIVE
from training.run import main


def _negative_velocity(net: FlowMapNet, guidance: float) -> Velocity:
    return lambda x, t, s: net(x, t, s, torch.full(t.shape, NEGATIVE), torch.full_like(t, guidance))


if __name__ == "__main__":
    FlowMapNet.velocity = _negative_velocity  # type: ignore[method-assign]
    sys.exit(main())
