"""A trained ELIR model that restores pixels of any size: codec and coarse estimator in tiles, which
changes nothing, and the field in one piece, as its group norms see all of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from datagen.tiles.reach import tiled
from training.elir.coarse_estimator import COARSE_REACH
from training.elir.codec import TINY_REACH
from training.elir.model_folder import PARTS, ElirConfig
from training.elir.network import LATENT_MULTIPLE, Networks
from training.elir.objective import OneArgument, Velocity
from training.elir.picture_memory import PictureMemory
from training.elir.sampler import restore
from training.settings.elir import TinyAutoencoder
from training.system_protocol import InTiles

TILE_PIXELS = 1024
"""Side of a tile; smaller pictures are one."""

log = logging.getLogger(__name__)


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
        # The block transforms look at nothing beside their block.
        reach = TINY_REACH if isinstance(config.model.codec, TinyAutoencoder) else 0
        parted = partial(tiled, tile=TILE_PIXELS // down)
        coarse = partial(parted, networks.coarse, reach=COARSE_REACH)
        return cls(
            encoder=partial(parted, networks.encoder, reach=reach, inside=down),
            coarse=coarse if config.model.has_coarse else networks.coarse,
            field=networks.field,
            decoder=partial(parted, networks.decoder, reach=reach, outside=down),
        )


class ElirRestorer:
    """Estimates the mean HQ latents of an LQ image, and carries them to likely ones."""

    margin = 0

    def __init__(
        self,
        networks: Networks,
        config: ElirConfig,
        dtype: torch.dtype,
        seed: int = 0,
        max_memory: int | None = None,
    ) -> None:
        """
        Args:
            max_memory: what this process may hold on the device, bytes; most of what is free when
                None.
        """
        for part in PARTS:
            getattr(networks, part).to(dtype, memory_format=torch.channels_last)
        self.networks = TiledNetworks.of(networks, config)
        self.config = config
        self.seed = seed
        self.device = next(networks.field.parameters()).device
        self.size_multiple = LATENT_MULTIPLE * config.model.downsample
        self.usual_steps = max(config.steps, 1)
        self._warned: set[int] = set()
        self._memory = PictureMemory(
            self.networks,
            size_multiple=self.size_multiple,
            downsample=config.model.downsample,
            largest_tile=TILE_PIXELS + 2 * COARSE_REACH * config.model.downsample,
            max_memory=max_memory,
        )

    def __call__(
        self,
        lq: Tensor,
        *,
        steps: int,
        in_tiles: InTiles | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """As `Restorer`; the noise of an image depends on the seed and its size alone. Its own
        tiles change nothing, so that it needs none of `in_tiles`.

        Raises:
            FlowmapsrError: memory does not hold such a picture.
        """
        self._warn(steps)
        down = self.config.model.downsample
        shape = (self.config.latent_channels, *(side // down for side in lq.shape[2:]))
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(shape, generator=generator).to(lq).expand(len(lq), *shape)
        objective = self.config.objective
        pixels = ((lq + 1) / 2).contiguous(memory_format=torch.channels_last)
        self._memory.require(pixels)

        def field(z: Tensor, t: Tensor) -> Tensor:
            velocity = self.networks.field(z, t)
            on_step()
            return velocity

        restored = restore(
            replace(self.networks, field=field),
            pixels,
            noise,
            objective.sigma_s if self.config.model.has_field else 0.0,
            steps if self.config.model.has_field else 0,
        )
        return 2 * restored - 1

    def parts(self) -> None:
        """Its field sees a picture in one piece only."""

    def _warn(self, steps: int) -> None:
        """Says once what another number of steps than the trained one means."""
        trained, flow = self.config.steps, self.config.objective.flow
        if steps in self._warned or steps == trained or flow == "flow_matching" or not trained:
            return
        self._warned.add(steps)
        meaning = "pictures are more blurred" if steps < trained else "pictures do not get better"
        log.warning(
            "%d steps, but the model was trained for %d segments, each of which one step crosses: "
            "%s; use %d, or train with objective.segments=%d",
            *(steps, trained, meaning, trained, steps),
        )
