"""ELIR's objective on a batch of pixels: draws times and noise for each sample of the step, and
reports the parts of its losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.data.loader import Batch
from training.elir.codec import CodecNetworks
from training.elir.collapsible import collapsed_once
from training.elir.network import Networks
from training.elir.objective import Flow, elir_losses, sample_times
from training.settings.elir import ElirModelSettings, LatentConsistency
from training.trainer import Losses, StageModel, Term

TOTAL, L2, MSE = "loss/total", "loss/l2", "loss/mse"
CONSISTENCY, VELOCITY, MATCHING = "loss/consistency", "loss/velocity", "loss/flow_matching"
PAST_END = "flow/past_segment_end"
"""Share of samples whose later time is past the segment's end, where the target is the path."""


class ElirNet(nn.Module):
    """What a stage trains of the networks; the codec's own halves stay outside."""

    def __init__(self, networks: Networks, codec: CodecNetworks) -> None:
        super().__init__()
        # Neither is a module, so the frozen halves are not registered.
        self.networks, self.codec = networks, codec
        self.encoder, self.coarse, self.field = networks.encoder, networks.coarse, networks.field

    def noise(self, seeds: Sequence[int], pixels: Tensor) -> Tensor:
        """Standard normal noise for the latents of pixels (B, 3, H, W), each by its own seed."""
        height, width = (side // self.codec.downsample for side in pixels.shape[2:])
        shape, generator = (self.codec.channels, height, width), torch.Generator()
        drawn = [torch.randn(shape, generator=generator.manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(pixels.device)


class ElirStageModel(StageModel):
    net: ElirNet


class ElirObjective:
    """L2 + (1 - beta) LCFM + beta MSE."""

    terms = (TOTAL, L2, CONSISTENCY, VELOCITY, MATCHING, MSE, PAST_END)
    headline = TOTAL
    guarded = (L2, CONSISTENCY, MATCHING)

    def __init__(self, settings: LatentConsistency, model: ElirModelSettings) -> None:
        self.settings = settings
        self.flow: Flow = settings.flow if model.has_field else "none"
        until_one = settings.time_range == "full" or settings.flow == "flow_matching"
        self._time_step = 0.0 if until_one else settings.time_step
        """How far from 1 the times end."""

    def __call__(self, model: ElirStageModel, batch: Batch, generator: torch.Generator) -> Losses:
        """The loss of one micro batch.

        All draws come from `generator`, which is the host's, and are made for the whole step: so a
        sample has the same ones however the step is divided.
        """
        net = model.net
        x, y = pixels_of(batch)
        samples, first = batch.micro.of_step(len(x)), batch.micro.first
        mine = slice(first, first + len(x))
        t = sample_times(samples, self._time_step, generator=generator)[mine].to(x.device)
        seeds = torch.randint(2**62, (samples,), generator=generator)[mine].tolist()
        noise = net.noise(seeds, x)
        with collapsed_once(net.field):
            found = elir_losses(net.networks, x, y, t, noise, self.settings, flow=self.flow)
            total, flow = found.total, found.consistency
            if flow is not None and self.settings.beta and (flow.end == 1).all():
                # The pixel error did not need the field. ZeRO-3's workers must call it alike.
                total = total + 0 * net.field(noise[:1], t[:1]).sum()
        # A part that the recipe leaves out counts no sample, so it is not reported.
        parts = {name: Term(found.total.new_zeros(()), 0) for name in self.terms}
        parts |= {TOTAL: _mean(found.total, len(x)), L2: _mean(found.l2, len(x))}
        over_time = {}
        if flow is not None:
            by_sample = flow.consistency.detach()
            parts[CONSISTENCY] = Term.of(by_sample)
            parts[VELOCITY] = Term.of(flow.velocity)
            parts[PAST_END] = Term.of(flow.past_end.float())
            over_time[CONSISTENCY] = (t, by_sample)
        elif self.flow == "flow_matching":
            parts[MATCHING] = _mean(found.lcfm, len(x))
        if self.flow != "none" and self.settings.beta:
            parts[MSE] = _mean(found.mse, len(x))
        return Losses(total, parts, over_time)


def pixels_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """HQ and LQ (B, 3, H, W) in [0, 1], channels last in memory."""
    assert batch.hq_pixels is not None and batch.lq_pixels is not None, "as batch_fields ask"
    hq, lq = batch.hq_pixels.float() / 255, batch.lq_pixels
    hq, lq = (x.contiguous(memory_format=torch.channels_last) for x in (hq, lq))
    return hq, lq


def _mean(value: Tensor, samples: int) -> Term:
    """A mean over samples, as a term."""
    return Term(value.detach() * samples, samples)
