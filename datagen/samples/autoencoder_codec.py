"""A diffusers autoencoder as a codec: its weights, and both directions, whole, in tiles, in rows.

Pixels are (B, 3, H, W) float32 in [-1, 1].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from datagen.errors import FlowmapsrError
from datagen.io.weight_files import checked_variant, read_json
from datagen.samples.weights import check_finite
from datagen.settings import AutoencoderSettings
from datagen.tiles.autoencoder import (
    CodecTiles,
    decode_parts,
    decode_tiled,
    encode_parts,
    encode_tiled,
    sees_everything,
)
from datagen.tiles.boxes import Box, Source, in_rows
from datagen.tiles.inside import decode_inside

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

_TILE = 512
"""Side of the tiles that `codec.tiling` asks for, pixels. Latents depend on it by rounding."""


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
            encoded = [
                encode_tiled(self._model.encoder, one, tiles.side, tiles.keep)
                for one in pixels.split(1)
            ]
            return self._scaled(self._mode(torch.cat(encoded)))
        found: Any = self._model.encode(pixels)
        return self._scaled(
            found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        )

    def decode(
        self, latents: torch.Tensor, tiles: CodecTiles | None = None, inside: Box | None = None
    ) -> torch.Tensor:
        if inside is None:
            return self._decoded(latents, tiles).float()
        if tiles is None and not sees_everything(self._model.decoder):
            unscaled = self._before_decoder(self._unscaled(latents))
            return decode_inside(self._model.decoder, unscaled, inside).float()
        return inside.of(self._decoded(latents, tiles), self.downsample).float()

    @torch.no_grad()
    def encode_rows(
        self, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[torch.Tensor]:
        def seen(box: Box) -> torch.Tensor:
            return source(box).to(self._dtype)

        tiles = tiles.on_network(self, "encoder")
        parts = encode_parts(self._model.encoder, seen, size, tiles)
        for rows in in_rows(parts, size[1]):
            yield self._scaled(self._mode(rows))

    @torch.no_grad()
    def decode_rows(
        self, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[torch.Tensor]:
        def unscaled(box: Box) -> torch.Tensor:
            return self._before_decoder(self._unscaled(source(box)))

        tiles = tiles.on_network(self, "decoder")
        for rows in in_rows(decode_parts(self._model.decoder, unscaled, size, tiles), size[1]):
            yield rows.float()

    def _decoded(self, latents: torch.Tensor, tiles: CodecTiles | None) -> torch.Tensor:
        unscaled = self._unscaled(latents)
        if tiles is not None:
            unscaled = self._before_decoder(unscaled)
            return decode_tiled(self._model.decoder, unscaled, tiles.side, tiles.keep)
        decoded: torch.Tensor = self._model.decode(unscaled).sample
        return decoded

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents.float() - self._shift) * self._scale

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents.float() / self._scale + self._shift).to(self._dtype)

    def _mode(self, encoded: torch.Tensor) -> torch.Tensor:
        """Latents of what the encoder gives, which each place has for itself."""
        convolution = getattr(self._model, "quant_conv", None)
        moments = encoded if convolution is None else convolution(encoded)
        return moments[:, : self.channels]  # an AutoencoderKL gives means, then variances

    def _before_decoder(self, latents: torch.Tensor) -> torch.Tensor:
        convolution = getattr(self._model, "post_quant_conv", None)
        return latents if convolution is None else convolution(latents)


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
