"""The regression target of every sample of a batch, by the network itself without gradient, which
is evaluated only on samples that need it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from training.flowmap.conditions import Conditions, Network
from training.flowmap.interpolant import Times, select_rows
from training.flowmap.targets import (
    eulerian_target,
    grounded,
    guided_velocity,
    lagrangian_target,
    shortcut_target,
)
from training.settings.objective import FlowMapObjectiveSettings, FlowMatching, SelfDistillation


@dataclass(frozen=True)
class Teacher:
    """Targets of L_FM and L_SD in one tensor.

    Extra evaluations, each on its own samples only: 2 for the shortcut; a derivative for the
    Eulerian; a derivative and 1 for the Lagrangian, or only the derivative with
    lsd_velocity=conditional. Guidance adds 1 where the path's velocity enters: everywhere but on
    the distilled samples of the shortcut and of the Lagrangian's own velocity.
    """

    settings: FlowMapObjectiveSettings
    gathered_parameters: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered by every worker around its evaluations, whose number depends on its samples: under
    ZeRO-3 a worker can make no evaluation alone, and none with a derivative."""

    @torch.no_grad()
    def targets(
        self, net: Network, x_t: Tensor, v: Tensor, times: Times, conditions: Conditions
    ) -> Tensor:
        """Targets (B, ...) for states x_t with conditional velocities v = x1 - x0.

        Args:
            times: t and s on the device of x_t; which samples train what, like `conditions`, in
                host memory: a device that was asked would make the host wait at every evaluation.
        """
        settings, follows_path = self.settings, times.is_flow_matching
        if isinstance(settings, FlowMatching) and settings.guidance is None:
            return v
        if isinstance(settings, SelfDistillation) and settings.formulation == "eulerian":
            follows_path = torch.ones_like(follows_path)
        with self.gathered_parameters():
            v = _guided(net, x_t, times.t, v, conditions, follows_path)
            if isinstance(settings, FlowMatching):
                return v

            def distill(rows: Tensor) -> Tensor:
                x, t, s, own_v = (select_rows(each, rows) for each in (x_t, times.t, times.s, v))
                return _distilled(settings, net, x, t, s, own_v, conditions.at(rows))

            return _filled(v, ~times.is_flow_matching, distill)


def _distilled(
    settings: SelfDistillation,
    net: Network,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    v: Tensor,
    conditions: Conditions,
) -> Tensor:
    """The formulation's target (n, ...) of samples that are all distilled."""
    u = conditions.velocity(net)
    match settings.formulation, settings.lsd_velocity:
        case "shortcut", _:
            return shortcut_target(grounded(u, 2.0**-settings.time_grid_levels), x, t, s)
        case "eulerian", _:
            return eulerian_target(u, x, t, s, v)
        case "lagrangian", "model":
            return lagrangian_target(u, x, t, s, lambda x_s, s: u(x_s, s, s))
        case _:
            # The paper's first term: v, guided where the step ends.
            all_of_them = torch.ones_like(conditions.is_guided)
            return lagrangian_target(
                u, x, t, s, lambda x_s, s: _guided(net, x_s, s, v, conditions, all_of_them)
            )


def _guided(
    net: Network, x: Tensor, time: Tensor, v: Tensor, conditions: Conditions, wanted: Tensor
) -> Tensor:
    """v^w = w v + (1 - w) u(x, time, time, c-) on guided samples among `wanted`, else v."""

    def guide(rows: Tensor) -> Tensor:
        own, at_time = conditions.at(rows), select_rows(time, rows)
        negative = own.negated().velocity(net)(select_rows(x, rows), at_time, at_time)
        return guided_velocity(select_rows(v, rows), negative, own.on(v.device).w)

    return _filled(v, wanted & conditions.is_guided, guide)


def _filled(base: Tensor, mask: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`base` with compute(rows) on the samples of `mask`; not called where there are none."""
    rows = mask.nonzero().squeeze(1)
    if not len(rows):
        return base
    filled = base.clone()
    filled[rows.to(base.device, non_blocking=True)] = compute(rows)
    return filled
