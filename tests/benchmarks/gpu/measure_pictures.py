"""The VAE's passes, and pictures through the whole of inference beside its parts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datagen.degradation.settings import DegradationSettings
from datagen.samples.codecs import Codec, load_codec
from datagen.settings import AutoencoderSettings
from tests.benchmarks.gpu.clock import Clock
from tests.benchmarks.gpu.dataset import random_vae
from tests.benchmarks.gpu.measure_steps import (
    KEPT_COSTS,
    SHAPE,
    SHOWN_COSTS,
    TINY_MODEL,
)
from tests.benchmarks.gpu.options import Precision, device, device_name
from tests.benchmarks.gpu.results import Results
from tests.benchmarks.one_step import (
    free_memory,
    measured,
    median_seconds,
    new_network,
    peak_memory,
    rate,
    shares,
)
from training.flowmap.model_folder import FlowMapConfig
from training.flowmap.prompts import STAND_IN
from training.flowmap.system import FlowMapRestorer
from training.inference.upscaler import Upscaler
from training.settings.model import ModelSettings

VAE_BATCHES = {256: (16, 64), 512: (4, 16), 768: (2, 8), 1024: (1, 4)}
"""Batches by side in pixels."""
TINY_VAE_BATCHES = {64: (1,)}
PICTURE_SIDES, TINY_PICTURE_SIDES = (512, 1024), (64,)
NFE = (1, 2, 4)


@dataclass(frozen=True)
class PictureParts:
    """The parts of `measure` that train nothing."""

    results: Results
    clock: Clock
    work: Path
    tiny: bool

    @property
    def times(self) -> dict[str, int]:
        return {"warm": 1, "timed": 1} if self.tiny else {"warm": 2, "timed": 5}

    def vae(self) -> None:
        settings, codec = self._codec()
        self.results.table(
            f"VAE with random weights, {settings.precision}, {device_name()}",
            *("pass", "side", "batch", "ms an image", "images/s", "TFLOP/s", "share of peak"),
            *("memory GB", f"{SHOWN_COSTS} largest costs"),
        )
        for side, batches in (TINY_VAE_BATCHES if self.tiny else VAE_BATCHES).items():
            for size in batches:
                pixels, latents = _random(size, side)
                passes: dict[str, Callable[[], object]] = {
                    "encode": partial(codec.encode, pixels),
                    "decode": _without_gradient(partial(codec.decode, latents)),
                }
                for name, work in passes.items():
                    with self.results.attempt(name, side, size):
                        self.clock.require()
                        self._vae_row(name, side, size, work, settings.precision)

    def _vae_row(
        self, name: str, side: int, size: int, work: Callable[[], object], numbers: Precision
    ) -> None:
        place = device()
        seconds, memory, flops, costs = measured(work, place, **self.times)
        self.results.row(
            *(name, side, size, f"{1000 * seconds / size:.2f}", f"{size / seconds:.1f}"),
            *rate(flops, seconds, place, numbers),
            *(memory, shares(costs, SHOWN_COSTS)),
            costs=costs[:KEPT_COSTS],
        )

    def inference(self) -> None:
        """Pictures that are already at their target size, one at a time."""
        model = TINY_MODEL if self.tiny else ModelSettings()
        size = "a tiny network" if self.tiny else "2.43 B parameters"
        self.results.table(
            f"Upscaling one picture, pixels to pixels, {size}, {device_name()}",
            *("network", "side", "NFE", "s", "over its parts"),
            *("encode ms", "evaluation ms", "decode ms", "memory GB"),
        )
        settings, codec = self._codec()
        net = new_network(model, SHAPE.channels, device()).eval()
        config = _config(model, settings, codec)
        for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            restorer = FlowMapRestorer(net.to(dtype), codec, config, guidance=1.0)
            upscaler = Upscaler(restorer, method="flowmapsr")
            for side in TINY_PICTURE_SIDES if self.tiny else PICTURE_SIDES:
                with self.results.attempt(name, side, "all"):
                    self.clock.require()
                    self._inference_rows(name, side, upscaler, restorer)

    def _inference_rows(
        self, name: str, side: int, upscaler: Upscaler, restorer: FlowMapRestorer
    ) -> None:
        place = device()
        free_memory(place)
        pixels, latents = _random(1, side)
        time = torch.ones(1, device=place)
        parts: list[Callable[[], object]] = [
            lambda: restorer.codec.encode(pixels),
            lambda: restorer.net(latents, time, 0 * time),
            lambda: restorer.codec.decode(latents),
        ]
        encode, evaluate, decode = (
            median_seconds(_without_gradient(part), place, **self.times) for part in parts
        )
        picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        for count in NFE:
            restore = partial(upscaler.restore, picture, steps=count)
            seconds = median_seconds(restore, place, **self.times)
            over = seconds / (encode + count * evaluate + decode)
            alone = (f"{1000 * part:.1f}" for part in (encode, evaluate, decode))
            self.results.row(
                name, side, count, f"{seconds:.3f}", f"{over:.2f}", *alone, peak_memory(place)
            )

    def _codec(self) -> tuple[AutoencoderSettings, Codec]:
        settings = random_vae(self.work, tiny=self.tiny)
        return settings, load_codec(settings, device=str(device()))


def _random(size: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and latents of pictures of that side."""
    latent = side // SHAPE.downsample
    pixels = torch.rand(size, 3, side, side, device=device()) * 2 - 1
    return pixels, torch.randn(size, SHAPE.channels, latent, latent, device=device())


def _without_gradient(work: Callable[[], object]) -> Callable[[], object]:
    """Not in inference mode, in which convolutions would not be counted."""
    return torch.no_grad()(work)


def _config(model: ModelSettings, codec: AutoencoderSettings, loaded: Codec) -> FlowMapConfig:
    return FlowMapConfig(
        model=model,
        latent_channels=SHAPE.channels,
        codec=codec,
        codec_fingerprint=loaded.fingerprint,
        prompt_embeddings=STAND_IN,
        degradation=DegradationSettings(),
        stage="none",
        recipe_digest="none",
        dataset_digest="none",
    )
