"""The inside of a decoded picture is what it is in all of it, but for rounding."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor, nn

from datagen.tiles.boxes import Box
from datagen.tiles.inside import decode_inside


@pytest.fixture(scope="module")
def decoder() -> nn.Module:
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(
        decoder_block_out_channels=(16, 16, 16), num_decoder_blocks=(1, 2, 1)
    )
    decoder: nn.Module = model.decoder.eval().double()
    return decoder


@pytest.fixture
def latents() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, 40, 33, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "box", [Box(8, 32, 8, 25), Box(0, 3, 30, 33), Box(12, 13, 0, 33), Box(0, 40, 0, 33)]
)
@torch.inference_mode()
def test_the_inside_is_that_of_the_whole(decoder: nn.Module, latents: Tensor, box: Box) -> None:
    made, expected = decode_inside(decoder, latents, box), box.of(decoder(latents), 4)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_each_layer_computes_only_what_decides(decoder: nn.Module, latents: Tensor) -> None:
    shapes = []
    layers = list(decoder.layers)
    hooks = [
        layer.register_forward_hook(lambda _, given, made: shapes.append(made.shape[2:]))
        for layer in (layers[0], layers[-1])
    ]
    decode_inside(decoder, latents, Box(16, 24, 12, 20))
    for hook in hooks:
        hook.remove()
    # 8 latents and 9 on each side, of which one is left at the end, times 4.
    assert [tuple(shape) for shape in shapes] == [(26, 26), (40, 40)]


@torch.inference_mode()
def test_an_error_leaves_the_decoder_as_it_was(decoder: nn.Module, latents: Tensor) -> None:
    expected = decoder(latents)
    with pytest.raises(RuntimeError):  # channels that it does not have
        decode_inside(decoder, latents[:, :3], Box(8, 32, 8, 25))
    assert torch.equal(decoder(latents), expected)
