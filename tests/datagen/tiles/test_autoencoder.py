"""An autoencoder in tiles equals the whole: to rounding, for every size of tile and picture."""

from __future__ import annotations

from functools import cache

import diffusers
import pytest
import torch
from torch import Tensor, nn

from datagen.tiles import attention
from datagen.tiles.autoencoder import decode_tiled, encode_tiled
from datagen.tiles.reach import growth_of, reach_of

ROUNDED = {"rtol": 1e-9, "atol": 1e-10}
LEVELS = 3


@cache
def kl(*, attends_early: bool = False) -> diffusers.AutoencoderKL:
    torch.manual_seed(0)
    down, up = ["DownEncoderBlock2D"] * LEVELS, ["UpDecoderBlock2D"] * LEVELS
    if attends_early:
        down[1], up[1] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    model = diffusers.AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    )
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


@cache
def tiny() -> diffusers.AutoencoderTiny:
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        num_encoder_blocks=(1, 1, 2),
        num_decoder_blocks=(2, 1, 1),
    ).eval()


def uneven(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise whose mean and strength are others in each part, so that no tile is like the whole."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise[..., : shape[-2] // 2, :] *= 0.1
    noise[..., shape[-1] // 3 :] += 1
    return noise.to(dtype)


@pytest.fixture(params=["kl", "kl that attends early", "tiny"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    found = tiny() if request.param == "tiny" else kl(attends_early=" " in request.param)
    return found.double()


@pytest.mark.parametrize(("height", "width", "tile"), [(24, 31, 8), (13, 40, 9), (20, 6, 16)])
@torch.no_grad()
def test_tiles_equal_the_whole(model: nn.Module, height: int, width: int, tile: int) -> None:
    x, z = uneven(2, 3, 4 * height, 4 * width), uneven(2, 4, height, width)
    for keep in (None, 0, 10**9):
        encoded = encode_tiled(model.encoder, x, tile, keep)
        torch.testing.assert_close(encoded, model.encoder(x), **ROUNDED)
        decoded = decode_tiled(model.decoder, z, tile, keep)
        torch.testing.assert_close(decoded, model.decoder(z), **ROUNDED)


@torch.no_grad()
def test_in_float32_tiles_are_within_1e4_of_the_whole() -> None:
    model = kl().float()
    x, z = uneven(1, 3, 160, 200, dtype=torch.float32), uneven(1, 4, 40, 50, dtype=torch.float32)
    assert (encode_tiled(model.encoder, x, 16) - model.encoder(x)).abs().max() < 1e-4
    assert (decode_tiled(model.decoder, z, 16) - model.decoder(z)).abs().max() < 1e-4


@torch.no_grad()
def test_what_a_pass_patches_is_put_back(model: nn.Module) -> None:
    before, z = model.decoder, uneven(1, 4, 12, 12)
    expected = before(z)
    decode_tiled(model.decoder, z, 5)
    assert torch.equal(model.decoder(z), expected)
    with pytest.raises(RuntimeError):  # channels that it does not have
        decode_tiled(model.decoder, z[:, :3], 5)
    assert torch.equal(model.decoder(z), expected)


@torch.no_grad()
def test_more_that_is_kept_means_less_work() -> None:
    model, z, seen = kl().double(), uneven(1, 4, 24, 24), [0]

    def count(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        seen[-1] += inputs[0].shape[-1] * inputs[0].shape[-2]

    convolutions = [part for part in model.decoder.modules() if isinstance(part, nn.Conv2d)]
    hooks = [convolution.register_forward_hook(count) for convolution in convolutions]
    for keep in (0, 40 * 8 * 24**2, 10**9):
        decode_tiled(model.decoder, z, 12, keep)
        seen.append(0)
    for hook in hooks:
        hook.remove()
    nothing, some, everything = seen[:3]
    assert everything < some < nothing


def test_the_reach_of_the_public_tiny_autoencoder() -> None:
    model = diffusers.AutoencoderTiny()
    assert reach_of([model.encoder], 8) == reach_of([model.decoder], 1) == 19
    assert (growth_of([model.encoder]), growth_of([model.decoder])) == (1 / 8, 8)


def test_sides_that_latents_do_not_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="30x16"):
        encode_tiled(tiny().encoder, torch.zeros(1, 3, 16, 30), 4)


@torch.no_grad()
def test_of_pictures_with_many_places_attention_looks_at_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, z = kl().double(), uneven(1, 4, 24, 31)
    whole = model.decoder(z)
    monkeypatch.setattr(attention, "MOST_PLACES", 24 * 31 // 4)
    error = (decode_tiled(model.decoder, z, 8) - whole).abs().max() / whole.std()
    assert 1e-6 < error < 0.05
