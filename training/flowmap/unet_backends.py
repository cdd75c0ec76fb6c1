"""A U-Net's passes by OpenVINO, which takes less time on a CPU, or as torch.compile makes them.

Passes that measure or replace group norms stay PyTorch's: those of pictures in tiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from datagen.errors import FlowmapsrError
from training.settings.evaluation import Backend

Pass = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Latents, times and class labels to the network's output."""
_SIDE = 2
"""Of the smallest latents inside the network when it is converted; it takes any size afterwards."""


def run_by(unet: UNet2DConditionModel, backend: Backend) -> None:
    """From now on its whole passes are those of a backend, in the type of its weights.

    Raises:
        FlowmapsrError: the backend is not installed, or the network is on another device than it
            is for.
    """
    if backend == "torch":
        return
    by_torch, dtype, norms = unet.forward, unet.dtype, _norms(unet)
    run = _by_openvino(unet) if backend == "openvino" else _compiled(unet)

    def forward(
        sample: Tensor, timestep: Tensor, *, class_labels: Tensor, **others: Any
    ) -> UNet2DConditionOutput:
        replaced = any("forward" in vars(norm) for norm in norms)
        counted = _get_current_dispatch_mode() is not None  # memory or operations, by PyTorch's
        if replaced or counted or unet.dtype != dtype:  # changed where a result was not finite
            result: UNet2DConditionOutput = by_torch(
                sample, timestep, class_labels=class_labels, **others
            )
            return result
        return UNet2DConditionOutput(sample=run(sample, timestep, class_labels))

    unet.forward = forward


def _norms(unet: nn.Module) -> list[nn.Module]:
    return [module for module in unet.modules() if isinstance(module, nn.GroupNorm)]


def _compiled(unet: UNet2DConditionModel) -> Pass:
    """By torch.compile, when it is first called, and once more when sides change. On a CUDA device
    all kernels of a pass are one CUDA graph, recorded once for each size."""
    is_graph = unet.device.type == "cuda"
    compiled = torch.compile(unet.forward, mode="reduce-overhead" if is_graph else None)

    def run(sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        if is_graph:
            torch.compiler.cudagraph_mark_step_begin()
        found: Tensor = compiled(
            sample, timestep, encoder_hidden_states=None, class_labels=class_labels
        ).sample
        return found.clone() if is_graph else found  # the next pass writes over a graph's result

    return run


class _Inputs(nn.Module):
    """The network as a function of its three inputs."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        found: Tensor = self.unet(
            sample, timestep, encoder_hidden_states=None, class_labels=class_labels
        ).sample
        return found


def _by_openvino(unet: UNet2DConditionModel) -> Pass:
    if find_spec("openvino") is None:
        raise FlowmapsrError(
            "backend=openvino needs the package openvino: pip install 'flowmapsr[openvino]'"
        )
    if unet.device.type != "cpu":
        raise FlowmapsrError(
            f"backend=openvino is for CPUs, and the model is on {unet.device}: leave it out"
        )
    import openvino

    side = _SIDE * 2 ** len(unet.config.block_out_channels)
    labels = unet.config.projection_class_embeddings_input_dim
    example = (
        torch.zeros(1, unet.config.in_channels, side, side),
        torch.zeros(1),
        torch.zeros(1, labels),
    )
    dtype = unet.dtype
    with warnings.catch_warnings(), torch.no_grad():
        for kind in (torch.jit.TracerWarning, DeprecationWarning):  # of tracing, for developers
            warnings.simplefilter("ignore", kind)
        # `Module`'s own, as diffusers' functions of these names say something on every call.
        converted = openvino.convert_model(_Inputs(nn.Module.float(unet)), example_input=example)
        nn.Module.to(unet, dtype)
    model = _openvino_core().compile_model(
        converted,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )

    def run(*inputs: Tensor) -> Tensor:
        found = model([one.float().contiguous().numpy() for one in inputs])[0]
        return torch.from_numpy(found.copy())

    return run


@cache
def _openvino_core() -> Any:
    """One for the process, which is never freed: each gives the thread another stack for signals,
    and two that are freed in the order they came leave one that is unmapped. The next signal, as
    Ctrl-C or a child's end, then crashes the process."""
    import openvino

    return openvino.Core()
