"""Builds a dataset with all cores or the GPU, without Ray; and a VAE to build one with."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from datagen.build.in_process import build_in_process
from datagen.settings import AutoencoderSettings, DatasetRecipe
from tests.benchmarks.gpu.options import device, precision

SDXL_VAE = (128, 256, 512, 512)
"""Channels of the blocks of SDXL's VAE."""


def build(recipe: DatasetRecipe, *, one_process: bool = False) -> str:
    """Builds a dataset, or goes on; says how large it is and how fast it was made.

    A codec with weights takes the GPU, with threads of all cores beside it; without one each core
    has a process.
    """
    start = time.perf_counter()
    cores = len(os.sched_getaffinity(0))
    if isinstance(recipe.codec, AutoencoderSettings) and torch.cuda.is_available():
        manifest = build_in_process(recipe, device="cuda", threads=cores)
    elif one_process or cores == 1:
        manifest = build_in_process(recipe, threads=cores)
    else:
        # Not forked: this process may have threads, and CUDA allows no forks.
        with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
            manifest = build_in_process(recipe, run_tasks=pool.map)
    seconds = time.perf_counter() - start
    return (
        f"{manifest.num_samples} samples, {manifest.bytes / 1e6:.0f} MB, "
        f"{manifest.rejected.count} photos left out, {manifest.num_samples / seconds:.1f} samples/s"
    )


def random_vae(work: Path, *, tiny: bool) -> AutoencoderSettings:
    """Settings of a VAE with random weights in SDXL's shape, which is written once; a tiny one has
    fewer channels."""
    folder = work / ("tiny-vae" if tiny else "random-vae")
    if not folder.exists():
        torch.manual_seed(0)
        unfinished = folder.with_name(f"{folder.name}.new")
        vae(channels=(8, 8, 16, 16) if tiny else SDXL_VAE).save_pretrained(unfinished)
        unfinished.rename(folder)
    return AutoencoderSettings(
        kind="autoencoder_kl", source=str(folder), precision=precision(device()), batch=8
    )


def vae(channels: tuple[int, ...] = SDXL_VAE) -> AutoencoderKL:
    """A VAE with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=min(32, channels[0]),
        sample_size=1024,
        scaling_factor=0.13025,
    )
