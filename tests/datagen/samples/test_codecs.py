"""The DCT codec against SciPy's transform; the autoencoders against diffusers' calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import diffusers
import numpy as np
import pytest
import safetensors.torch
import scipy.fft
import torch
from torch import nn

from datagen.errors import FlowmapsrError
from datagen.samples import autoencoder_codec
from datagen.samples.codecs import Codec, DctCodec, load_codec
from datagen.settings import AutoencoderSettings, DctSettings
from datagen.tiles.autoencoder import CodecTiles
from datagen.tiles.boxes import Box


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=["dct8", "dct4"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return load_codec(DctSettings(kind=request.param))


def test_the_dct_is_scipys(codec: Codec, pixels: torch.Tensor) -> None:
    n = codec.downsample
    latents = codec.encode(pixels)
    assert latents.shape == (2, 3 * n * n, 32 // n, 48 // n) and codec.channels == 3 * n * n
    for color, row, column in [(0, 0, 0), (2, 3, 5), (1, 2, 4)]:
        block = pixels[1, color, n * row : n * row + n, n * column : n * column + n].numpy()
        expected = scipy.fft.dctn(block, norm="ortho")
        found = latents[1, n * n * color : n * n * (color + 1), row, column].reshape(n, n)
        assert np.allclose(found, expected, atol=1e-5)


def test_the_dct_is_lossless_and_keeps_the_squared_error(
    codec: Codec, pixels: torch.Tensor
) -> None:
    assert (codec.decode(codec.encode(pixels)) - pixels).abs().max() < 1e-5
    other = pixels.flip(0)
    pixel_error = (pixels - other).square().mean()
    latent_error = (codec.encode(pixels) - codec.encode(other)).square().mean()
    assert torch.isclose(latent_error, pixel_error, rtol=1e-4)


def test_decoding_the_dct_is_differentiable(codec: Codec, pixels: torch.Tensor) -> None:
    latents = codec.encode(pixels).requires_grad_()
    codec.decode(latents).square().sum().backward()
    assert latents.grad is not None
    assert torch.allclose(latents.grad, 2 * codec.encode(pixels), atol=1e-4)


def test_the_dct_does_not_depend_on_threads_or_batch(codec: Codec, pixels: torch.Tensor) -> None:
    whole = codec.encode(pixels)
    torch.set_num_threads(2)
    assert torch.equal(codec.encode(pixels), whole)
    assert torch.equal(codec.encode(pixels[1:]), whole[1:])


def test_the_fingerprint_of_dct8_is_that_of_earlier_datasets() -> None:
    assert load_codec(DctSettings()).fingerprint.startswith("8a6e0581d2878ac2")
    assert load_codec(DctSettings(kind="dct4")).fingerprint.startswith("52afbec1a7b67710")


def _save_kl(folder: Path) -> diffusers.AutoencoderKL:
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.3,
        shift_factor=0.1,
    )
    model.save_pretrained(folder)
    return model.eval()


def _save_tiny(folder: Path) -> diffusers.AutoencoderTiny:
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    )
    model.save_pretrained(folder)
    return model.eval()


def test_autoencoder_kl_equals_diffusers(tmp_path: Path, pixels: torch.Tensor) -> None:
    model = _save_kl(tmp_path)
    settings = AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path))
    codec = load_codec(settings)
    assert (codec.channels, codec.downsample) == (4, 2)
    with torch.no_grad():
        mode = model.encode(pixels).latent_dist.mode()
        latents = codec.encode(pixels)
        assert torch.allclose(latents, (mode - 0.1) * 0.3, atol=1e-5)
        assert torch.allclose(codec.decode(latents), model.decode(mode).sample, atol=1e-4)
    assert torch.equal(codec.encode(pixels), latents)
    gradient = latents.clone().requires_grad_()
    codec.decode(gradient).sum().backward()
    assert gradient.grad is not None and gradient.grad.abs().sum() > 0


def test_autoencoder_tiny_equals_diffusers(tmp_path: Path, pixels: torch.Tensor) -> None:
    model = _save_tiny(tmp_path)
    settings = AutoencoderSettings(kind="autoencoder_tiny", source=str(tmp_path))
    codec = load_codec(settings)
    assert (codec.channels, codec.downsample) == (4, 4)
    with torch.no_grad():
        assert torch.allclose(codec.encode(pixels), model.encode(pixels).latents, atol=1e-5)
    assert codec.decode(codec.encode(pixels)).shape == pixels.shape


def test_precision_tiling_and_slicing_change_little_and_no_fingerprint(
    tmp_path: Path, pixels: torch.Tensor
) -> None:
    _save_kl(tmp_path)
    plain = load_codec(AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path)))
    frugal = load_codec(
        AutoencoderSettings(
            kind="autoencoder_kl", source=str(tmp_path), precision="bf16", tiling=True, slicing=True
        )
    )
    latents = frugal.encode(pixels)
    assert latents.dtype == torch.float32
    assert (latents - plain.encode(pixels)).abs().mean() < 0.02
    assert frugal.fingerprint == plain.fingerprint


@pytest.mark.parametrize("save", [_save_kl, _save_tiny])
@torch.no_grad()
def test_tiles_leave_latents_and_pictures_as_they_are(
    save: Callable[[Path], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    kind: Literal["autoencoder_kl", "autoencoder_tiny"] = (
        "autoencoder_kl" if save is _save_kl else "autoencoder_tiny"
    )
    settings = AutoencoderSettings(kind=kind, source=str(tmp_path))
    whole = load_codec(settings)
    monkeypatch.setattr(autoencoder_codec, "_TILE", 48)
    tiled = load_codec(settings.model_copy(update={"tiling": True}))
    pixels = 2 * torch.rand(2, 3, 128, 72, generator=torch.Generator().manual_seed(0)) - 1
    latents = tiled.encode(pixels)
    torch.testing.assert_close(latents, whole.encode(pixels), rtol=1e-4, atol=1e-5)
    # Whatever else is in a batch changes no bit.
    assert torch.equal(tiled.encode(pixels[1:]), latents[1:])
    decoded = whole.decode(latents, CodecTiles(11))
    torch.testing.assert_close(decoded, whole.decode(latents), rtol=1e-4, atol=1e-5)
    inside = Box(5, 20, 3, 9)
    for tiles in (None, CodecTiles(11)):
        expected = inside.of(whole.decode(latents, tiles), whole.downsample)
        made = whole.decode(latents, tiles, inside)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_the_dct_in_tiles_is_the_same() -> None:
    codec, pixels = DctCodec(), 2 * torch.rand(2, 3, 80, 56) - 1
    latents = codec.encode(pixels, CodecTiles(4))
    torch.testing.assert_close(latents, codec.encode(pixels))
    torch.testing.assert_close(codec.decode(latents, CodecTiles(3)), codec.decode(latents))
    inside = Box(2, 9, 1, 6)
    torch.testing.assert_close(
        codec.decode(latents, None, inside), inside.of(codec.decode(latents), 8)
    )


def test_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    model = _save_kl(tmp_path / "a")
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1e-3
    model.save_pretrained(tmp_path / "b")
    prints = {
        name: load_codec(
            AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path / name))
        ).fingerprint
        for name in "ab"
    }
    assert prints["a"] != prints["b"] and len(prints["a"]) == 64


def test_missing_weights_name_the_setting(tmp_path: Path) -> None:
    settings = AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path / "nowhere"))
    with pytest.raises(FlowmapsrError, match="codec.source .*nowhere"):
        load_codec(settings)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    _save_kl(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights["decoder.conv_in.bias"]
    safetensors.torch.save_file(weights, path)
    with pytest.raises(FlowmapsrError, match="codec.source .*decoder.conv_in.bias"):
        load_codec(AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path)))


def _spoilt(folder: Path, fault: str) -> None:
    _save_kl(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    if fault == "not finite":
        weights["decoder.conv_in.bias"][0] = float("nan")
    if fault == "whole numbers":
        weights["decoder.conv_in.bias"] = weights["decoder.conv_in.bias"].to(torch.int8)
    safetensors.torch.save_file(weights, path)
    if fault == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("not finite", r"codec\.source .*decoder\.conv_in\.bias are not finite"),
        ("whole numbers", r"codec\.source .*whole numbers in place of weights \(decoder\.conv_in"),
        ("pointer", r"codec\.source .*is a Git LFS pointer"),
    ],
)
def test_weights_that_cannot_be_right_are_refused(tmp_path: Path, fault: str, message: str) -> None:
    _spoilt(tmp_path, fault)
    with pytest.raises(FlowmapsrError, match=message):
        load_codec(AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path)))


def test_a_variant_is_loaded_where_it_is_all_there_is(tmp_path: Path) -> None:
    model = _save_kl(tmp_path)
    plain = load_codec(AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path)))
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(tmp_path, variant="fp32")
    variant = load_codec(AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path)))
    assert variant.fingerprint == plain.fingerprint


def test_another_kind_of_autoencoder_is_named(tmp_path: Path) -> None:
    _save_tiny(tmp_path)
    with pytest.raises(FlowmapsrError, match="an AutoencoderTiny, which codec.kind=autoencoder_kl"):
        load_codec(AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path)))


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    _save_kl(tmp_path).save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FlowmapsrError, match="safetensors"):
        load_codec(AutoencoderSettings(kind="autoencoder_kl", source=str(tmp_path)))
