"""A trained ELIR model that restores pixels of any size: codec and coarse estimator in tiles, which
changes nothing, and the field in one piece, as its group norms see all of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from datagen.tiles.boxes import Box
from training.elir.coarse_estimator import COARSE_REACH
from training.elir.model_folder import PARTS, ElirConfig
from training.elir.network import LATENT_MULTIPLE, Networks
from training.elir.picture_memory import PictureMemory
from training.elir.sampler import restore
from training.elir.tiled_networks import TILE_PIXELS, RowNetworks, TiledNetworks
from training.restorer_protocol import InTiles, LatentPass, Parts

log = logging.getLogger(__name__)


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
        self._untiled, self.networks = networks, TiledNetworks.of(networks, config)
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
            device=self.device,
        )

    def __call__(
        self,
        lq: Tensor,
        *,
        steps: int,
        in_tiles: InTiles | None = None,
        on_step: Callable[[], None] = lambda: None,
        inside: Box | None = None,
    ) -> Tensor:
        """As `Restorer`; the noise of an image depends on the seed and its size alone. Its own
        tiles change nothing, so that it needs none of `in_tiles`.

        Raises:
            FlowmapsrError: memory does not hold such a picture.
        """
        self._warn(steps)
        down = self.config.model.downsample
        height, width = lq.shape[2:]
        noise = self._noise(height // down, width // down).to(lq)
        pixels = ((lq + 1) / 2).contiguous(memory_format=torch.channels_last)
        self._memory.require((height, width), held=2 * pixels.numel() * pixels.element_size())

        def field(z: Tensor, t: Tensor) -> Tensor:
            velocity = self.networks.field(z, t)
            on_step()
            return velocity

        restored = restore(
            replace(self.networks, field=field),
            pixels,
            noise.expand(len(lq), *noise.shape),
            self._noise_level,
            self._steps(steps),
        )
        return 2 * (restored if inside is None else inside.of(restored)) - 1

    def parts(self) -> Parts:
        """Its field sees all latents at once; everything else is exact in tiles."""
        model = self.config.model
        return Parts(
            RowNetworks(self._untiled, self.config),
            self.config.latent_channels,
            model.downsample,
            self._passes,
            self._memory.require,
        )

    def _passes(self, steps: int) -> Iterator[LatentPass]:
        """As `restore`, on latents that are there."""
        self._warn(steps)
        steps, nets = self._steps(steps), self.networks

        def noised(_: Tensor, coarse: Tensor) -> Tensor:
            return coarse.add_(self._noise_level * self._noise(*coarse.shape[-2:]))

        yield LatentPass(nets.coarse, noised, None, is_step=False)
        for step in range(steps):

            def velocity(z: Tensor, t: float = step / steps) -> Tensor:
                return nets.field(z, z.new_full((len(z),), t))

            yield LatentPass(velocity, lambda z, v: z + v / steps, None)

    @property
    def _noise_level(self) -> float:
        return self.config.objective.sigma_s if self.config.model.has_field else 0.0

    def _steps(self, steps: int) -> int:
        return steps if self.config.model.has_field else 0

    def _noise(self, height: int, width: int) -> Tensor:
        """(C, height, width) for an image of so many latents."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.config.latent_channels, height, width, generator=generator)

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
