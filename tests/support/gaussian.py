"""The closed form behind the tests: a correlated Gaussian pair, whose exact flow map is known.

x0 ~ N(m0, s0^2), x1 ~ N(m1, s1^2), correlation rho: mean_t = (1-t) m0 + t m1,
V_t = (1-t)^2 s0^2 + t^2 s1^2 + 2 t (1-t) rho s0 s1,
X_{t,s}(x) = mean_s + sqrt(V_s / V_t) (x - mean_t).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.flowmap.interpolant import interpolate


@dataclass(frozen=True)
class GaussianPair:
    m0: float = 0.7
    s0: float = 1.3
    m1: float = -0.4
    s1: float = 0.8
    rho: float = 0.5

    def mean(self, t: Tensor) -> Tensor:
        return (1 - t) * self.m0 + t * self.m1

    def variance(self, t: Tensor) -> Tensor:
        cross = 2 * t * (1 - t) * self.rho * self.s0 * self.s1
        return (1 - t) ** 2 * self.s0**2 + t**2 * self.s1**2 + cross

    def variance_slope(self, t: Tensor) -> Tensor:
        cross = 2 * (1 - 2 * t) * self.rho * self.s0 * self.s1
        return -2 * (1 - t) * self.s0**2 + 2 * t * self.s1**2 + cross

    def exact_map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        t, s = t[:, None], s[:, None]
        spread = (self.variance(s) / self.variance(t)).sqrt()
        return self.mean(s) + spread * (x - self.mean(t))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        slope = self.variance_slope(t) / (2 * self.variance(t))
        return self.m1 - self.m0 + slope * (x - self.mean(t))

    def u(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact average velocity: (x - X_{t,s}(x)) / (t - s), v_t(x) where s = t."""
        width = (t - s)[:, None]
        same = width == 0
        average = (x - self.exact_map(x, t, s)) / torch.where(same, torch.ones_like(width), width)
        return torch.where(same, self.velocity(x, t), average)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n pairs (x0, x1), (n, 1) float64."""
        noise = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
        x0 = self.m0 + self.s0 * noise[0]
        mixed = self.rho * noise[0] + (1 - self.rho**2) ** 0.5 * noise[1]
        return x0, self.m1 + self.s1 * mixed

    def states(self, n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (n, 1), t and s with s <= t (n,), the same at every call."""
        generator = torch.Generator().manual_seed(0)
        x0, x1 = self.sample(n, generator)
        s, t = torch.rand(2, n, generator=generator, dtype=torch.float64).sort(dim=0).values
        return interpolate(x0, x1, t), t, s
