"""Turns pixels into latents and back: a block DCT without weights, or a diffusers autoencoder.

Pixels are (B, 3, H, W) float32 in [-1, 1].
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from datagen.dataset.records import CodecRecord
from datagen.dataset.shards import Latents
from datagen.errors import FlowmapsrError
from datagen.io.weight_files import checked_variant, read_json
from datagen.samples.weights import check_finite
from datagen.settings import AutoencoderSettings, CodecSettings, DatasetRecipe
from datagen.tiles.autoencoder import CodecTiles, decode_tiled, encode_tiled
from datagen.tiles.reach import tiled

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny


_TILE = 512
"""Side of the tiles that `codec.tiling` asks for, pixels. Latents depend on it by rounding."""


class Codec(Protocol):
    """Pixels to latents and back, deterministic in both directions."""

    channels: int
    """C of the latents."""
    downsample: int
    """H / h and W / w."""
    fingerprint: str
    """SHA-256 that changes whenever the latents would."""
    scaling: Mapping[str, float]
    """The numbers of a VAE's config that latents are scaled by."""

    @property
    def encoder(self) -> torch.nn.Module | None:
        """The network that encodes; None where there is none, and each block is for itself."""

    @property
    def decoder(self) -> torch.nn.Module | None:
        """As `encoder`."""

    def encode(self, pixels: torch.Tensor, tiles: CodecTiles | None = None) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] to float32 (B, C, h, w); no gradient."""

    def decode(self, latents: torch.Tensor, tiles: CodecTiles | None = None) -> torch.Tensor:
        """(B, C, h, w) to float32 (B, 3, H, W), not clamped; differentiable where not in tiles."""


def decode_latents(codec: Codec, latents: Latents) -> dict[str, np.ndarray]:
    """The pictures that the stored latents of a sample decode to, uint8 (H, W, 3), by name."""
    stacked = np.stack(list(latents.values())).astype(np.float32)
    with torch.no_grad():
        images = codec.decode(torch.from_numpy(stacked)).clamp(-1, 1)
    levels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return dict(zip(latents, levels, strict=True))


def load_codec(settings: CodecSettings, device: str = "cpu") -> Codec:
    """The codec of a recipe on a device.

    Raises:
        FlowmapsrError: its weights cannot be loaded.
    """
    if isinstance(settings, AutoencoderSettings):
        return AutoencoderCodec(settings, device)
    return DctCodec(settings.block, device)


def codec_of(recipe: DatasetRecipe, device: str = "cpu") -> Codec | None:
    """What encodes the recipe's latents; None where it asks for none. Raises as `load_codec`."""
    return load_codec(recipe.codec, device) if recipe.latents else None


def codec_record(recipe: DatasetRecipe, codec: Codec | None) -> CodecRecord | None:
    """What a dataset says of the codec that made it."""
    if codec is None:
        return None
    return CodecRecord(
        kind=recipe.codec.kind,
        fingerprint=codec.fingerprint,
        channels=codec.channels,
        downsample=codec.downsample,
    )


def _dct_matrix(side: int) -> torch.Tensor:
    """The orthonormal DCT-II (Ahmed, Natarajan, Rao 1974): rows are frequencies, float64."""
    index = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi / side * (index[None, :] + 0.5) * index[:, None])
    matrix *= math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix


class DctCodec:
    """Orthonormal DCT of the blocks of each color: lossless, linear, without weights.

    For blocks of n x n pixels latent channel = n * n * color + n * vertical frequency + horizontal
    frequency. Coefficients are not scaled, so the squared error of the latents is that of the
    pixels. With blocks of 8 their standard deviation over photos falls from 3.7 (mean of the block)
    over 0.7 (next) to 0.02 (finest).
    """

    encoder = decoder = None

    def __init__(self, block: int = 8, device: str = "cpu") -> None:
        self.downsample = block
        self.channels = 3 * block**2
        dct = _dct_matrix(block)
        basis = torch.einsum("vy,ux->vuyx", dct, dct).reshape(block**2, block**2)
        self._basis = basis.float().to(device)
        self.scaling: Mapping[str, float] = {}
        scales = np.ones(block**2)  # of the coefficients
        self.fingerprint = hashlib.sha256(f"dct{block}".encode() + scales.tobytes()).hexdigest()

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, tiles: CodecTiles | None = None) -> torch.Tensor:
        if tiles is not None:
            return tiled(self.encode, pixels, tiles.side, reach=0, inside=self.downsample)
        batch, colors, height, width = pixels.shape
        n = self.downsample
        if height % n or width % n:
            raise ValueError(f"dct{n} needs sides that are multiples of {n}, not {height}x{width}")
        rows, columns = height // n, width // n
        blocks = pixels.float().reshape(batch, colors, rows, n, columns, n)
        blocks = blocks.permute(0, 1, 3, 5, 2, 4).reshape(batch, colors, n**2, -1)
        return (self._basis @ blocks).reshape(batch, -1, rows, columns)

    def decode(self, latents: torch.Tensor, tiles: CodecTiles | None = None) -> torch.Tensor:
        if tiles is not None:
            return tiled(self.decode, latents, tiles.side, reach=0, outside=self.downsample)
        batch, _, rows, columns = latents.shape
        n = self.downsample
        coefficients = latents.float().reshape(batch, 3, n**2, rows * columns)
        blocks = (self._basis.T @ coefficients).reshape(batch, 3, n, n, rows, columns)
        return blocks.permute(0, 1, 4, 2, 5, 3).reshape(batch, 3, rows * n, columns * n)


class AutoencoderCodec:
    """diffusers' `AutoencoderKL` (mode of the posterior) or `AutoencoderTiny`, scaled and shifted.

    latents = (z - shift_factor) * scaling_factor, as the model's own config says.
    """

    def __init__(self, settings: AutoencoderSettings, device: str = "cpu") -> None:
        self._model = _load_autoencoder(settings)
        config: Any = self._model.config
        self.channels = int(config.latent_channels)
        widths = config.get("encoder_block_out_channels") or config["block_out_channels"]
        self.downsample = 2 ** (len(widths) - 1)
        self.fingerprint = _fingerprint(self._model)
        self._scale = float(config.scaling_factor)
        self._shift = float(config.shift_factor or 0.0)
        self.scaling: Mapping[str, float] = {
            "scaling_factor": self._scale,
            "shift_factor": self._shift,
        }
        self._dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        # Not diffusers' own `to`, which warns about a cast even for models without fp32 modules.
        torch.nn.Module.to(self._model, device=device, dtype=self._dtype)
        self._model.to(memory_format=torch.channels_last)
        if settings.slicing:
            self._model.enable_slicing()
        self._tiles = CodecTiles(_TILE // self.downsample) if settings.tiling else None

    @property
    def encoder(self) -> torch.nn.Module:
        encoder: torch.nn.Module = self._model.encoder
        return encoder

    @property
    def decoder(self) -> torch.nn.Module:
        decoder: torch.nn.Module = self._model.decoder
        return decoder

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors by diffusers' names: `encoder...`, `decoder...`."""
        return self._model.state_dict()

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, tiles: CodecTiles | None = None) -> torch.Tensor:
        tiles = tiles or self._tiles
        pixels = pixels.to(self._dtype)
        if tiles is not None and max(pixels.shape[-2:]) > tiles.side * self.downsample:
            # One after another: others in the batch change no bit.
            latents = torch.cat([self._encode_tiled(one, tiles) for one in pixels.split(1)])
        else:
            encoded: Any = self._model.encode(pixels)
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents.float() - self._shift) * self._scale

    def _encode_tiled(self, pixels: torch.Tensor, tiles: CodecTiles) -> torch.Tensor:
        encoded = encode_tiled(self._model.encoder, pixels, tiles.side, tiles.keep)
        convolution = getattr(self._model, "quant_conv", None)
        moments = encoded if convolution is None else convolution(encoded)
        return moments[:, : self.channels]  # an AutoencoderKL gives means, then variances

    def decode(self, latents: torch.Tensor, tiles: CodecTiles | None = None) -> torch.Tensor:
        unscaled = (latents.float() / self._scale + self._shift).to(self._dtype)
        if tiles is not None:
            convolution = getattr(self._model, "post_quant_conv", None)
            unscaled = unscaled if convolution is None else convolution(unscaled)
            return decode_tiled(self._model.decoder, unscaled, tiles.side, tiles.keep).float()
        decoded: torch.Tensor = self._model.decode(unscaled).sample
        return decoded.float()


def _load_autoencoder(settings: AutoencoderSettings) -> AutoencoderKL | AutoencoderTiny:
    import diffusers

    kind = {
        "autoencoder_kl": diffusers.AutoencoderKL,
        "autoencoder_tiny": diffusers.AutoencoderTiny,
    }[settings.kind]
    folder = Path(settings.source, settings.subfolder or "")
    try:
        config = read_json(folder / "config.json")
        found = config.get("_class_name", kind.__name__)
        if found != kind.__name__:
            raise ValueError(f"it is an {found}, which codec.kind={settings.kind} does not read")
        model = kind.from_pretrained(
            settings.source,
            subfolder=settings.subfolder,
            use_safetensors=True,
            variant=checked_variant(folder, "diffusion_pytorch_model"),
            torch_dtype=torch.float32,
        )
        # diffusers only warns, and leaves these without values.
        missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
        if missing:
            raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
        check_finite(model.state_dict(), settings.source)
    except (OSError, ValueError, FlowmapsrError) as error:
        raise FlowmapsrError(
            f"codec.source {settings.source!r} (subfolder {settings.subfolder!r}): no "
            f"{kind.__name__} with safetensors weights could be loaded ({error}); "
            "give a hub id or the folder that holds its config.json"
        ) from error
    model.eval().requires_grad_(False)
    return model


def _fingerprint(model: AutoencoderKL | AutoencoderTiny) -> str:
    """SHA-256 of the weights as stored (float32) and of the config, without where it came from."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
