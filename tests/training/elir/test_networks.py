"""Sizes, counts and first values of ELIR's networks, and its sampler."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from datagen.samples.codecs import DctCodec
from tests.training.elir.small_networks import CHANNELS, double, pixels, small_networks
from training.elir.coarse_estimator import START_GAIN
from training.elir.codec import TinyDecoder, TinyEncoder, dct_codec
from training.elir.network import build, time_features
from training.elir.sampler import euler, euler_states, restore


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("width", "middle", "collapsed", "expanded"),
    [
        (128, 3, 29_561_232, 103_592_848),
        (128, 1, 18_936_208, 60_453_776),
        (96, 1, 11_126_384, 34_483_184),
        (64, 1, 5_452_624, 15_836_240),
    ],
)
def test_networks_have_the_published_numbers_of_parameters(
    width: int, middle: int, collapsed: int, expanded: int
) -> None:
    for expand, field, coarse in ((None, collapsed, 5_498_640), (4, expanded, 23_334_480)):
        with torch.device("meta"):
            nets = build(width, middle, expand=expand)
        assert parameters(nets.field) == field
        assert parameters(nets.coarse) == coarse
        assert parameters(nets.encoder) == parameters(nets.frozen_encoder) == 1_229_456
        assert parameters(nets.decoder) == 1_229_443


def test_times_become_cosines_and_sines_of_80_frequencies() -> None:
    t = torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64)
    features = time_features(t)
    assert features.shape == (3, 160) and features.dtype == torch.float64
    for row, time in zip(features.tolist(), t.tolist(), strict=True):
        angles = [1000 * time * 10_000 ** (-i / 79) for i in range(80)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row == pytest.approx(expected, abs=1e-9)


def test_the_tiny_autoencoder_is_that_of_diffusers_in_pixels_from_0_to_1() -> None:
    import diffusers

    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    )
    encoder, decoder = TinyEncoder(16, width=8), TinyDecoder(16, width=8)
    encoder.load_state_dict(theirs.encoder.state_dict())
    decoder.load_state_dict(theirs.decoder.state_dict())
    x = torch.rand(1, 3, 32, 48)
    latents = theirs.encode(2 * x - 1).latents
    torch.testing.assert_close(encoder(x), latents, rtol=1e-4, atol=1e-5)
    pictures = theirs.decode(5 * latents).sample  # latents beyond the soft bound
    torch.testing.assert_close(2 * decoder(5 * latents) - 1, pictures, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [2, 8])
def test_the_block_dct_is_the_datasets_and_lossless(block: int) -> None:
    codec, x = dct_codec(block), torch.rand(2, 3, 16, 24)
    latents = codec.encoder(x)
    torch.testing.assert_close(latents, DctCodec(block).encode(2 * x - 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codec.decoder(latents), x, rtol=1e-4, atol=1e-5)
    assert latents.shape[1] == codec.channels and 16 // latents.shape[2] == codec.downsample


def test_training_starts_where_the_coarse_estimate_is_the_latents_of_its_input() -> None:
    """The cascade holds the identity, so an untrained estimator multiplies by 2.73: the encoder's
    last layer divides by it."""
    torch.manual_seed(0)
    nets = build(32, 1, expand=4)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(START_GAIN * nets.encoder(x), nets.frozen_encoder(x))
    latents = torch.randn(2, 16, 8, 8)
    assert (nets.coarse(latents / START_GAIN) - latents).square().mean() < 1e-3
    assert all(p.requires_grad for p in nets.encoder.parameters())
    plain = build(32, 1, expand=4, codec=dct_codec(2), growth=None)
    torch.testing.assert_close(plain.coarse(plain.encoder(x)), plain.frozen_encoder(x))


def test_pixels_can_take_the_place_of_latents() -> None:
    nets = build(32, 1, expand=None, codec=dct_codec(1), growth=4)
    restored = restore(nets, torch.rand(1, 3, 8, 12), torch.randn(1, 3, 8, 12), 0.1, 2)
    assert restored.shape == (1, 3, 8, 12)


def test_networks_in_bf16_take_and_give_float32() -> None:
    nets = small_networks()
    for network in vars(nets).values():
        network.bfloat16()
    y, noise = torch.rand(1, 3, 32, 64), torch.randn(1, CHANNELS, 4, 8)
    restored = restore(nets, y, noise, 0.1, 2)
    assert restored.dtype == torch.float32 and bool(torch.isfinite(restored).all())


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_euler_steps_of_a_linear_field_have_the_closed_form(steps: int) -> None:
    times: list[float] = []

    def v(z: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (2,) and t.dtype == z.dtype
        times.extend(set(t.tolist()))
        return 0.7 * z

    z0 = double(2, 3, 4, 4)
    torch.testing.assert_close(euler(v, z0, steps), (1 + 0.7 / steps) ** steps * z0)
    assert times == [i / steps for i in range(steps)]
    states = list(euler_states(v, z0, steps))
    assert len(states) == steps
    torch.testing.assert_close(states[0], (1 + 0.7 / steps) * z0)


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (64, 160)])
def test_restoring_takes_any_sides_that_are_multiples_of_32(size: tuple[int, int]) -> None:
    nets, y = small_networks(), pixels(1, 3, *size)
    noise = double(1, CHANNELS, size[0] // 8, size[1] // 8)
    still = [restore(nets, y, seed * noise, 0.0, 3) for seed in (1, 2)]
    assert torch.equal(*still) and still[0].shape == y.shape  # without noise nothing is drawn
    moved = restore(nets, y, noise, 0.5, 3)
    assert not torch.equal(moved, still[0])


def test_restoring_is_the_decoded_end_of_the_flow_held_within_0_and_1() -> None:
    """Networks of one number each show the order of everything."""
    nets = SimpleNamespace(
        encoder=lambda y: 2 * y,
        coarse=lambda z: z + 1,
        field=lambda z, t: z,
        decoder=lambda z: z / 9,
    )
    y, noise = torch.tensor([[0.5]]).double(), torch.tensor([[10.0]]).double()
    expected = ((2 * 0.5 + 1) + 0.1 * 10) * 1.5**2 / 9
    assert restore(nets, y, noise, 0.1, 2).item() == pytest.approx(expected)
    assert restore(nets, y, noise, 0.0, 0).item() == pytest.approx(2 / 9)
    assert restore(nets, 9 * y, noise, 0.1, 2) == 1 and restore(nets, -9 * y, noise, 0.1, 2) == 0
