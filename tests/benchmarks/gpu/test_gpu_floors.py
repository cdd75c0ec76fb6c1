"""Counted operations of networks, and the floors that follow from them."""

from __future__ import annotations

import pytest

from tests.benchmarks.gpu.floors import (
    PRODUCT,
    UPDATE_BYTES,
    evaluation,
    evaluations,
    flow_matching_step,
    network,
    parameters,
    vae_flops,
)
from training.flowmap.network import FlowMapNet
from training.settings.model import ModelSettings


@pytest.fixture(scope="module")
def paper() -> FlowMapNet:
    return network(ModelSettings())


def test_the_papers_network(paper: FlowMapNet) -> None:
    assert parameters(paper) == 2_430_165_764
    assert UPDATE_BYTES * parameters(paper) == pytest.approx(73e9, rel=0.01)
    found = {side: evaluation(paper, side) for side in (256, 512, 1024)}
    tflops = {side: costs.all.flops / 1e12 for side, costs in found.items()}
    assert tflops == pytest.approx({256: 0.406, 512: 1.693, 1024: 7.898}, rel=0.002)
    costs = found[256]
    assert costs.all.flops == sum(group.flops for group in costs.groups.values())
    # No operation is faster than the best product.
    assert costs.all.seconds >= costs.all.flops / PRODUCT


def test_a_backward_pass_costs_two_and_checkpointing_one_more() -> None:
    small = ModelSettings(
        block_channels=(32, 64),
        layers_per_block=1,
        transformer_layers=(0, 1),
        attention_heads=(2, 4),
        norm_groups=8,
    )
    net = network(small)
    once = evaluation(net, 256).all.flops
    plain, again = (
        flow_matching_step(net, 256, 2, checkpointing=checkpointing).all.flops
        for checkpointing in (False, True)
    )
    # A little more: flash attention computes its scores again.
    assert 3 <= plain / (2 * once) < 3.1
    # Less than one: what no gradient needs, such as a block's last product, is not computed again.
    assert 0.5 < (again - plain) / (2 * once) < 1


@pytest.mark.parametrize(
    ("side", "encode", "decode"), [(256, 0.273, 0.622), (512, 1.117, 2.515), (1024, 4.88, 10.47)]
)
def test_the_vae(side: int, encode: float, decode: float) -> None:
    assert vae_flops(side) == pytest.approx((encode * 1e12, decode * 1e12), rel=0.002)


@pytest.mark.parametrize(
    ("objective", "guided", "expected"),
    [
        ("FM", False, 3),
        ("SSD", False, 3.5),
        ("ESD", False, 3.5),
        ("LSD", False, 3.75),
        ("SSD", True, 4.175),
        ("ESD", True, 4.4),
        ("LSD", True, 4.425),
    ],
)
def test_evaluations_of_a_step(objective: str, guided: bool, expected: float) -> None:
    assert evaluations(objective, guided=guided) == pytest.approx(expected)
