"""Peak memory of `Upscaler.upscale` over the size of the result: it grows by the picture's arrays.

    python -m tests.benchmarks.picture_memory [--megapixels 1 4 16 64] [--tile 512]

Small models with random weights (dct8, or an AutoencoderKL of 8 to 16 channels without attention,
whose time grows by the square of the pixels), at scale 2 in one step, each size in a process of its
own on one thread. Shown is the most that was resident beyond what is after a small picture, GB, and
bytes for each pixel of the result, and CPU seconds.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import numpy as np
import torch

from datagen.degradation.settings import DegradationSettings
from datagen.samples.codecs import load_codec
from datagen.settings import AutoencoderSettings, CodecSettings, DctSettings
from tests.support.tiny import MODEL
from training.flowmap.model_folder import FlowMapConfig, save_model
from training.flowmap.network import FlowMapNet
from training.flowmap.prompts import STAND_IN, stand_in
from training.inference.upscaler import Upscaler
from training.settings.model import ModelSettings

CODECS = ("dct8", "autoencoder_kl")
WARM = 192
"""Side of the small picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "MEGAPIXELS"))
    given = parser.parse_args()
    if given.one:
        print(_measured(Path(given.one[0]), float(given.one[1]), given.tile))
        return
    with TemporaryDirectory() as work:
        for kind in given.codecs:
            model = _model(Path(work) / kind, kind)
            for size in given.megapixels:
                command = [sys.executable, "-m", __spec__.name, "--tile", str(given.tile)]
                one = [*command, "--one", str(model), str(size)]
                made = subprocess.run(one, check=True, capture_output=True, text=True)
                print(f"| {kind} | {size:g} | {made.stdout.strip()} |", flush=True)


def _measured(model: Path, megapixels: float, tile: int) -> str:
    torch.set_num_threads(1)
    upscaler = Upscaler.from_pretrained(model, device="cpu", tile=tile)
    upscaler.upscale(_picture(WARM), scale=2, steps=1)
    side = round(math.sqrt(megapixels * 1e6) / 2)
    picture = _picture(side)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    began = time.process_time()
    result = upscaler.upscale(picture, scale=2, steps=1)
    peak = _resident("VmHWM") - before
    pixels = result.shape[0] * result.shape[1]
    return f"{peak / 1e9:.2f} | {peak / pixels:.0f} | {time.process_time() - began:.0f}"


def _picture(side: int) -> np.ndarray:
    """A gradient with noise, uint8 (side, side, 3)."""
    rows = np.linspace(0, 200, side, dtype=np.float32)[:, None, None]
    noise = np.random.default_rng(0).integers(0, 56, (side, side, 3), dtype=np.uint8)
    return rows.astype(np.uint8) + noise


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _model(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    codec = _codec(folder.with_name("vae")) if kind == "autoencoder_kl" else DctSettings()
    loaded = load_codec(codec)
    settings = ModelSettings.model_validate(MODEL)
    net = FlowMapNet(settings, latent_channels=loaded.channels)
    config = FlowMapConfig(
        model=settings,
        latent_channels=loaded.channels,
        codec=codec,
        codec_fingerprint=loaded.fingerprint,
        prompt_embeddings=STAND_IN,
        degradation=DegradationSettings(scale=(1, 8)),
        stage="none",
        recipe_digest="0",
        dataset_digest="0",
    )
    save_model(folder, net, config, prompts=stand_in(settings.prompt_channels))
    return folder


def _codec(folder: Path) -> CodecSettings:
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        latent_channels=4,
    ).save_pretrained(folder)
    return AutoencoderSettings(kind="autoencoder_kl", source=str(folder))


if __name__ == "__main__":
    main()
