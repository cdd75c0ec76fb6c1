"""Counted FLOPs against closed forms; counting changes neither weights nor compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.support.launch import found_by
from tests.support.networks import ATTENTION, tiny_net
from training.data.loader import Batch
from training.data.planned import Position
from training.flowmap.network import FlowMapNet
from training.monitoring.mfu import FlopCounter, FlopMeter, Peak, counted_flops, gpu_peak
from training.settings.model import ModelSettings


def _count(forward: Callable[[], Tensor]) -> int:
    with FlopCounter() as counter:
        forward().sum().backward()
    return counter.flops


def test_a_linear_layer_costs_two_for_each_weight_and_row_and_twice_that_backward() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    assert _count(lambda: layer(x)) == 2 * (2 * 3 * 7 * 5)  # x needs no gradient
    x.requires_grad_()
    assert _count(lambda: layer(x)) == 3 * (2 * 3 * 7 * 5)


def test_a_convolution_costs_its_kernel_at_every_output() -> None:
    layer, x = nn.Conv2d(4, 6, 3, padding=1, stride=2), torch.randn(2, 4, 8, 8, requires_grad=True)
    assert _count(lambda: layer(x)) == 3 * (2 * 2 * 6 * 4 * 4 * (4 * 3 * 3))


def test_attention_counts_both_products_and_five_of_them_backward() -> None:
    batch, heads, tokens, width = 2, 3, 10, 8
    q, k, v = (torch.randn(batch, heads, tokens, width, requires_grad=True) for _ in range(3))
    product = 2 * batch * heads * tokens * tokens * width
    attend = functional.scaled_dot_product_attention
    with torch.no_grad(), FlopCounter() as counter:
        attend(q, k, v)
    assert counter.flops == 2 * product
    assert _count(lambda: attend(q, k, v)) == 7 * product


def test_forward_passes_that_checkpointing_repeats_count_too() -> None:
    layers = nn.Sequential(nn.Linear(7, 7), nn.SiLU(), nn.Linear(7, 7))
    x = torch.randn(3, 7, requires_grad=True)
    plain = _count(lambda: layers(x))
    product = 2 * 3 * 7 * 7
    repeated = _count(lambda: checkpoint(layers, x, use_reentrant=False))
    assert plain == 3 * 2 * product
    assert repeated == plain + product  # no gradient needs the output of the second layer


def test_a_whole_network_costs_the_sum_of_its_layers(tiny_model: ModelSettings) -> None:
    """Every convolution, linear layer and attention, by the shapes that pass through them."""
    settings = tiny_model.model_copy(update={"transformer_layers": (0, 2)})
    net = FlowMapNet(settings, latent_channels=12)
    forward: list[int] = []
    backward: list[int] = []

    def layer(module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        flops = 2 * out.numel() * module.weight[0].numel()
        forward.append(flops)
        backward.append(flops * (2 if inputs[0].requires_grad else 1))

    def attention(module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        batch, tokens, width = out.shape
        forward.append(2 * (2 * batch * tokens * tokens * width))
        backward.append(5 * (2 * batch * tokens * tokens * width))

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(layer)
        elif isinstance(module, Attention):
            module.register_forward_hook(attention)
    x, times = torch.randn(3, 12, 8, 8), torch.rand(3)
    with torch.no_grad(), FlopCounter() as counter:
        net(x, times, times)
    assert counter.flops == sum(forward) > 0
    forward.clear()
    backward.clear()
    assert _count(lambda: net(x, times, times)) == sum(forward) + sum(backward)


def test_inference_mode_counts_the_same_and_changes_no_bit() -> None:
    net, x, times = tiny_net(**ATTENTION), torch.randn(2, 12, 8, 8), torch.rand(2)
    with torch.no_grad(), counted_flops(compiled=False) as expected:
        net(x, times, times)
    with torch.inference_mode():
        plain = net(x, times, times)
        with counted_flops(compiled=False) as found:
            counted = net(x, times, times)
    assert found.flops == expected.flops > 0
    assert torch.equal(counted, plain)
    with counted_flops(compiled=False) as around, torch.inference_mode():
        net(x, times, times)
    assert around.flops == expected.flops


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA A10", "bf16", 125),
    ],
)
def test_gpus_are_known_by_name(name: str, precision: Any, tflops: float) -> None:
    peak = gpu_peak(name, precision)
    assert peak is not None and peak.tflops == tflops


def test_a_gpu_with_a_similar_name_is_unknown() -> None:
    assert gpu_peak("NVIDIA A10G", "bf16") is None
    assert gpu_peak("NVIDIA A1000", "bf16") is None


def _batch(side: int) -> Batch:
    latents = torch.zeros(4, 3, side, side)
    return Batch(tuple("abcd"), {"hq": latents, "lq": latents}, Position())


def test_other_ranks_count_nothing() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(4, 7)
    meter = FlopMeter(peak=Peak(2.0, "test"), compiled=False, checkpointed=False, enabled=False)
    with meter.micro_step("update", _batch(4)):
        layer(x)
    assert not meter.per_image and meter.metrics() == {}


def test_counting_leaves_a_compiled_network_compiled() -> None:
    """torch never compiles a function that it first sees while FLOPs are counted."""
    layer = nn.Linear(7, 5)
    compiled = torch.compile(layer.forward, backend="aot_eager")
    meter = FlopMeter(peak=None, compiled=True, checkpointed=False)
    x = torch.randn(4, 7)

    def step(side: int) -> None:
        with meter.micro_step("update", _batch(side)):
            compiled(x)

    torch._dynamo.reset()
    counters.clear()
    for side, counted in ((4, 0), (4, 1), (8, 1), (8, 2)):
        step(side)
        assert len(meter.per_image) == counted  # the first step of a shape may compile
    assert set(meter.per_image.values()) == {2.0 * 7 * 5}
    compiled(torch.randn(9, 7))  # another size is still compiled
    assert counters["frames"]["ok"] == counters["frames"]["total"] == 2


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of `counted_workers`, from one launch of two workers."""
    path = tmp_path_factory.mktemp("counted") / "results.json"
    return found_by("tests.training.workers.counted_workers", workers=2, results=path)


def test_counting_changes_no_bit_of_the_weights(counted: dict[str, Any]) -> None:
    for case, found in counted.items():
        assert found["moved"] and found["same_weights"], case


def test_the_count_is_the_same_for_every_zero_stage(counted: dict[str, Any]) -> None:
    student, forward = counted["zero1"]["by_hand"], counted["zero1"]["forward"]
    assert counted["zero1"]["per_image"] == student
    # zero3 checkpoints: most of the forward pass is computed a second time.
    assert student < counted["zero3"]["per_image"] <= student + forward
    assert "perf/hfu" in counted["zero3"]["metrics"]
    assert "perf/mfu" not in counted["zero3"]["metrics"]
    # A quarter of the samples is distilled, by two evaluations or a derivative that costs two.
    assert counted["shortcut"]["per_image"] == student + 0.25 * 2 * forward
    assert counted["jvp"]["per_image"] == pytest.approx(student + 0.25 * 2 * forward, rel=0.01)


def test_each_kind_of_step_is_counted_once(counted: dict[str, Any]) -> None:
    found = counted["zero1"]
    assert found["counted_steps"] == [0, 1]  # the first on each of two shapes
    assert found["metrics"]["perf/mfu"] == pytest.approx(found["metrics"]["perf/tflops"] / 2.0)
    flops = found["metrics"]["perf/tflops"] * 1e12 * found["seconds"]
    assert flops == pytest.approx(found["expected_flops"], rel=0.2)
