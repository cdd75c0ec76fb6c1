"""The least time that a pass, a training step or a picture can take, counted without a GPU.

`python -m tests.benchmarks.gpu.floors` prints the tables of RESULTS.md. Networks run on torch's
`meta` device, which has shapes and no numbers: FLOPs are those of torch's counter, bytes what each
operation must read and write, launches the operations that are no views. An operation takes at
least its FLOPs over the best product's rate and its bytes over the best copy's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.recipes.load import training_recipe
from tests.benchmarks.gpu.dataset import vae
from tests.benchmarks.training_steps import Case
from training.flowmap.network import FlowMapNet
from training.monitoring.mfu import FlopCounter
from training.settings.model import ModelSettings

PRODUCT, COPY = 798e12, 3.0e12
"""Measured on one H100: FLOP/s of a bf16 product of 8192², bytes/s read and written by a copy."""
PEAK = 989e12
"""FLOP/s of its data sheet, which MFU refers to."""
GOAL = 0.45
"""MFU of flow matching at 1024²."""
UPDATE_BYTES = 30
"""Moved for each parameter by one pass of AdamW: fp32 gradient, master weight and two moments are
read, the latter three and the bf16 weight are written."""
HELD_BYTES = 20
"""Kept for each parameter: bf16 weight and gradient; fp32 master weight, gradient and moments."""
LATENT_SIDES = {256: 32, 512: 64, 1024: 128}
PLANS = (
    *((512, 4, False), (512, 16, True), (512, 32, True)),
    *((1024, 1, False), (1024, 4, False), (1024, 4, True), (1024, 8, True)),
)
"""Side, micro batch and checkpointing of steps that `measure` takes too."""
GROUPS = {
    "convolution": "convolutions",
    "convolution_backward": "convolutions",
    "mm": "products",
    "addmm": "products",
    "bmm": "products",
    "_scaled_dot_product_flash_attention": "attention",
    "_scaled_dot_product_flash_attention_backward": "attention",
    "native_group_norm": "norms",
    "native_group_norm_backward": "norms",
    "native_layer_norm": "norms",
    "native_layer_norm_backward": "norms",
}
OTHER = "copies, sums, activations"


@dataclass
class Cost:
    """Of one or several operations."""

    flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    seconds: float = 0.0
    """At the ceilings."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.launches + other.launches,
            self.seconds + other.seconds,
        )


class OperationCosts(TorchDispatchMode):
    """Adds up the operations of a block by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: defaultdict[str, Cost] = defaultdict(Cost)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with FlopCounter() as counter:
            out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in ("_unsafe_view", "detach")):
            tensors = [
                leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)
            ]
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            least = max(counter.flops / PRODUCT, moved / COPY)
            self.groups[GROUPS.get(name, OTHER)] += Cost(counter.flops, moved, 1, least)
        return out

    @property
    def all(self) -> Cost:
        return sum(self.groups.values(), Cost())


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
    """Attention as a GPU does it in bf16; on `meta` torch would write all scores to memory."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


@contextmanager
def counted() -> Iterator[OperationCosts]:
    attention = patch.object(functional, "scaled_dot_product_attention", _flash_attention)
    with attention, OperationCosts() as costs:
        yield costs


def network(settings: ModelSettings, channels: int = 4) -> FlowMapNet:
    """A network on the `meta` device."""
    with torch.device("meta"):
        return FlowMapNet(settings, latent_channels=channels).to("meta", torch.bfloat16)


def evaluation(net: FlowMapNet, side: int) -> OperationCosts:
    """One evaluation of one picture of that side in pixels."""
    with torch.no_grad(), counted() as costs:
        net(*_inputs(net, side, 1))
    return costs


def flow_matching_step(
    net: FlowMapNet, side: int, batch: int, *, checkpointing: bool
) -> OperationCosts:
    """Forward and backward of a batch, without the update."""
    switch = net.unet.enable_gradient_checkpointing if checkpointing else None
    (switch or net.unet.disable_gradient_checkpointing)()
    with counted() as costs:
        net(*_inputs(net, side, batch)).square().mean().backward()
    net.zero_grad()
    return costs


def _inputs(net: FlowMapNet, side: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    latent = LATENT_SIDES[side]
    x = torch.empty(batch, net.latent_channels, latent, latent, device="meta")
    t = torch.empty(batch, device="meta")
    return x, t, t


def vae_flops(side: int) -> tuple[float, float]:
    """FLOPs of encoding and of decoding one picture by a VAE of SDXL's shape."""
    with torch.device("meta"):
        model: Any = vae()
    latent = LATENT_SIDES[side]
    flops = []
    for work, x in (
        (model.encode, torch.empty(1, 3, side, side, device="meta")),
        (model.decode, torch.empty(1, 4, latent, latent, device="meta")),
    ):
        with torch.no_grad(), FlopCounter() as counter:
            work(x)
        flops.append(counter.flops)
    return flops[0], flops[1]


def evaluations(objective: str, *, guided: bool) -> float:
    """What an image of a training step costs, in evaluations; without those of checkpointing."""
    return 3 * Case(objective, guided).theory


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def update_seconds(module: nn.Module) -> float:
    """Of one pass of AdamW."""
    return UPDATE_BYTES * parameters(module) / COPY


def main() -> None:
    recipes = {
        name: training_recipe(name, ["manifest=/none", "output=/none"]).model
        for name in ("flowmapsr-paper", "flowmapsr-small")
    }
    nets = {name: network(settings) for name, settings in recipes.items()}
    _print_passes(nets)
    paper = nets["flowmapsr-paper"]
    _print_objectives(paper)
    _print_operations(paper, side=1024, batch=4)
    _print_largest_mfu(paper)
    _print_pictures(paper)


def _print_passes(nets: dict[str, FlowMapNet]) -> None:
    print(f"\n| TFLOP an image | {' | '.join(f'{side}²' for side in LATENT_SIDES)} |")
    print("|---|---|---|---|")
    for name, net in nets.items():
        cells = [f"{evaluation(net, side).all.flops / 1e12:.3f}" for side in LATENT_SIDES]
        print(f"| {name}, {parameters(net) / 1e6:.0f} M, one evaluation | {' | '.join(cells)} |")
    both = [vae_flops(side) for side in LATENT_SIDES]
    for name, flops in zip(("encode", "decode"), zip(*both, strict=True), strict=True):
        print(f"| VAE, {name} | {' | '.join(f'{one / 1e12:.3f}' for one in flops)} |")


def _print_objectives(net: FlowMapNet) -> None:
    print("\n| objective | evaluations | images/s at 512², 1024²: floor | goal | measured |")
    print("|---|---|---|---|---|")
    flops = [evaluation(net, side).all.flops for side in (512, 1024)]
    for guided in (False, True):
        for name in ("FM", "SSD", "ESD", "LSD"):
            if guided and name == "FM":
                continue
            count = evaluations(name, guided=guided)
            floor, goal = (
                ", ".join(f"{rate / (count * each):.1f}" for each in flops)
                for rate in (PRODUCT, GOAL * PEAK)
            )
            label = f"{name} guided" if guided else name
            print(f"| {label} | {count:.2f} | {floor} | {goal} | not measured |")


def _print_operations(net: FlowMapNet, *, side: int, batch: int) -> None:
    step = flow_matching_step(net, side, batch, checkpointing=True)
    update = Cost(bytes=UPDATE_BYTES * parameters(net), seconds=update_seconds(net))
    rows = {**dict(sorted(step.groups.items())), "update": update, "all": step.all + update}
    print(f"\n| FM, {batch} of {side}², checkpointing | TFLOP | GB | launches | ms | measured |")
    print("|---|---|---|---|---|---|")
    for name, cost in rows.items():
        print(
            f"| {name} | {cost.flops / 1e12:.1f} | {cost.bytes / 1e9:.0f} | {cost.launches or '-'} "
            f"| {1000 * cost.seconds:.0f} | not measured |"
        )


def _print_largest_mfu(net: FlowMapNet) -> None:
    columns = (
        *("FM, micro batch", "checkpointing", "ms: floor", "images/s"),
        *("MFU at most", "without update", "measured"),
    )
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for side, batch, checkpointing in PLANS:
        step = flow_matching_step(net, side, batch, checkpointing=checkpointing)
        without = step.all.seconds
        seconds = without + update_seconds(net)
        counted_ones = 3 * batch * evaluation(net, side).all.flops / PEAK
        print(
            f"| {batch} of {side}² | {'yes' if checkpointing else 'no'} | {1000 * seconds:.0f} "
            f"| {batch / seconds:.1f} | {100 * counted_ones / seconds:.0f} % "
            f"| {100 * counted_ones / without:.0f} % | not measured |"
        )


def _print_pictures(net: FlowMapNet) -> None:
    print("\n| one picture of 1024² | TFLOP | ms: floor | measured |\n|---|---|---|---|")
    flops = evaluation(net, 1024).all.flops
    for count in (1, 2, 4):
        all_of_it = sum(vae_flops(1024)) + count * flops
        milliseconds = 1000 * all_of_it / PRODUCT
        print(f"| NFE {count} | {all_of_it / 1e12:.1f} | {milliseconds:.0f} | not measured |")


if __name__ == "__main__":
    main()
