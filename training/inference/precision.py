"""Whether a model restores in bfloat16, or by another backend, what it restores in float32."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from training.restorer_protocol import InTiles, LoadOptions, Restorer

log = logging.getLogger(__name__)

LEAST = 40.0
"""dB between the two: a difference that no 8-bit picture shows."""
_SIDE = 128


def loaded(
    load: Callable[[LoadOptions], Restorer],
    options: LoadOptions,
    device: torch.device,
    in_tiles: InTiles,
) -> Restorer:
    """The restorer, in the precision and by the backend asked for. Where the precision is `auto`
    and the device computes in bfloat16, or another backend than PyTorch runs it, it is compared
    with PyTorch in float32 on one picture, and that taken where they differ."""
    restorer = load(options)
    is_fast = options.precision == "auto" and options.dtype(device) == torch.bfloat16
    if not is_fast and options.backend == "torch":
        return restorer
    exact = load(replace(options, precision="fp32", backend="torch"))
    found = agreement(restorer, exact, in_tiles)
    if found >= LEAST:
        return restorer
    if options.backend != "torch":
        log.warning(
            "the model by %s is %.1f dB from itself by PyTorch in fp32, less than %g: PyTorch runs "
            "it",
            *(options.backend, found, LEAST),
        )
        return loaded(load, replace(options, backend="torch"), device, in_tiles)
    log.warning(
        "the model in bf16 is %.1f dB from itself in fp32, less than %g: it restores in fp32, "
        "which takes longer (precision=bf16 takes bf16 all the same)",
        *(found, LEAST),
    )
    return exact


@torch.inference_mode()
def agreement(first: Restorer, second: Restorer, in_tiles: InTiles) -> float:
    """PSNR between what two restorers make of a smooth picture with noise, dB; infinite where they
    agree, negative infinity where one of them is not finite."""
    multiple = math.lcm(first.size_multiple, second.size_multiple)
    side = multiple * math.ceil((_SIDE + 2 * first.margin) / multiple)
    ramp = torch.linspace(-0.8, 0.8, side)
    noise = 0.1 * torch.randn(3, side, side, generator=torch.Generator().manual_seed(0))
    picture = (ramp[:, None] * ramp + noise)[None].to(first.device)
    one, two = (
        each(picture, steps=first.usual_steps, in_tiles=in_tiles, on_step=lambda: None).float()
        for each in (first, second)
    )
    if not (one.isfinite().all() and two.isfinite().all()):
        return -math.inf
    error = float((one - two).square().mean()) / 4  # a range of 2
    return math.inf if error == 0 else -10 * math.log10(error)
