"""ELIR's codec and coarse estimator in tiles, which changes nothing: they are convolutions that see
a known number of latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from datagen.tiles.autoencoder import CodecTiles
from datagen.tiles.boxes import Part, Source, in_rows
from datagen.tiles.reach import tiled, tiled_parts
from training.elir.coarse_estimator import COARSE_REACH
from training.elir.codec import TINY_REACH
from training.elir.model_folder import ElirConfig
from training.elir.network import Networks
from training.elir.objective import OneArgument, Velocity
from training.settings.elir import TinyAutoencoder

TILE_PIXELS = 1024
"""Side of a tile; smaller pictures are one."""


@dataclass(frozen=True)
class TiledNetworks:
    """Those of `Networks` that restore, in tiles where that is exact."""

    encoder: OneArgument
    coarse: OneArgument
    field: Velocity
    decoder: OneArgument

    @classmethod
    def of(cls, networks: Networks, config: ElirConfig) -> TiledNetworks:
        down = config.model.downsample
        reach = _codec_reach(config)
        parted = partial(tiled, tile=TILE_PIXELS // down)
        coarse = partial(parted, networks.coarse, reach=COARSE_REACH)
        return cls(
            encoder=partial(parted, networks.encoder, reach=reach, inside=down),
            coarse=coarse if config.model.has_coarse else networks.coarse,
            field=networks.field,
            decoder=partial(parted, networks.decoder, reach=reach),
        )


@dataclass(frozen=True)
class RowNetworks:
    """The codec as `RowCodec`, on pictures that are never whole."""

    networks: Networks
    config: ElirConfig

    def encode_rows(
        self, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[Tensor]:
        return in_rows(self._parts("encoded", source, size, tiles), size[1])

    def decode_rows(
        self, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[Tensor]:
        return in_rows(self._parts("decoded", source, size, tiles), size[1])

    def encoded(self, x: Tensor) -> Tensor:
        """Pixels (1, 3, H, W) in [-1, 1] -> latents (1, C, h, w)."""
        return self.networks.encoder((x + 1) / 2)

    def decoded(self, z: Tensor) -> Tensor:
        """The other way."""
        return 2 * self.networks.decoder(z) - 1

    def _parts(
        self, name: str, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[Part]:
        reach, run = _codec_reach(self.config), tiles.on_network(self, name).run
        return tiled_parts(getattr(self, name), source, size, tiles.side, reach, run)


def _codec_reach(config: ElirConfig) -> int:
    # The block transforms look at nothing beside their block.
    return TINY_REACH if isinstance(config.model.codec, TinyAutoencoder) else 0
