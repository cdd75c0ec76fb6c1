"""A trained model as inference sees it: it restores a picture, whole or taken apart; and how it is
loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from datagen.tiles.autoencoder import CodecTiles
from datagen.tiles.boxes import Box, Source
from training.settings.evaluation import Backend, Precision
from training.weights.model_folder import ModelConfig


class InTiles(Protocol):
    """Runs a network on latents of any size (`training/inference/tiles/tiler.py`)."""

    def __call__(
        self,
        net: nn.Module,
        fn: Callable[[Tensor], Tensor],
        x: Tensor,
        *,
        pixels: int,
        multiple: int,
    ) -> Tensor:
        """fn of one picture's latents x (1, C, h, w), in tiles where memory asks for them.

        Args:
            net: the network that `fn` runs; all tiles share its group norms.
            fn: of one tile, or of several (N, C, h, w).
            pixels: side of what one latent shows.
            multiple: sides of tiles must be multiples of this.
        """


@dataclass(frozen=True)
class LatentPass:
    """A network's pass over latents, and what becomes of them."""

    fn: Callable[[Tensor], Tensor]
    """Of tiles of latents (N, C, h, w) on the device, or of all latents."""
    update: Callable[[Tensor, Tensor], Tensor]
    """Latents and what `fn` made of them -> the next ones, each from its own place."""
    net: nn.Module | None
    """What `fn` runs, whose group norms all tiles share; None where it needs all latents at
    once."""
    multiple: int = 1
    """Sides of tiles must be multiples of this."""
    is_step: bool = True
    """Whether it is one of the network evaluations that are asked for."""


class RowCodec(Protocol):
    """A codec whose pictures need not be whole, as `Codec`."""

    def encode_rows(
        self, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[Tensor]: ...

    def decode_rows(
        self, source: Source, size: tuple[int, int], tiles: CodecTiles
    ) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Parts:
    """A restorer taken apart, for pictures whose pixels are not held whole."""

    codec: RowCodec
    channels: int
    """C of the latents."""
    downsample: int
    """H / h and W / w."""
    passes: Callable[[int], Iterable[LatentPass]]
    """Of a number of network evaluations, in order."""
    require: Callable[[tuple[int, int]], None] = lambda shape: None
    """Raises `FlowmapsrError` where memory does not hold what it needs of a picture of (H, W)."""


class Restorer(Protocol):
    """A trained model that restores pixels."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def size_multiple(self) -> int:
        """Both sides of an image must be multiples of this."""

    @property
    def usual_steps(self) -> int:
        """Network evaluations where no number is asked for."""

    @property
    def margin(self) -> int:
        """Pixels that it needs around an image; they mirror what is inside."""

    def __call__(
        self,
        lq: Tensor,
        *,
        steps: int,
        in_tiles: InTiles,
        on_step: Callable[[], None],
        inside: Box | None = None,
    ) -> Tensor:
        """An LQ image at its target size (1, 3, H, W) in [-1, 1] -> its HQ estimate, alike, by
        `steps` network evaluations, 1 or more. `on_step` is called after each; what it raises ends
        the work. Of the estimate only the pixels of `inside` are given; all when None."""

    def parts(self) -> Parts | None:
        """The same taken apart; None where it cannot be."""


EVERYWHERE = 1024
"""Side of a tile where it may not depend on a machine's memory, pixels."""


@dataclass(frozen=True)
class LoadOptions:
    """What may be chosen when a model is loaded. A system refuses strengths that it does not have;
    None leaves the model's own."""

    lora_scale: float | None = None
    guidance: float | None = None
    precision: Precision = "auto"
    seed: int = 0
    """Of the noise, in a system that restores with some: each image's is drawn from it anew."""
    tile: int | None = None
    """Side of the tiles of large pictures, pixels; the largest that fits into memory when None."""
    max_memory: int | None = None
    """What this process may hold on the device, bytes; most of what is free when None."""
    same_everywhere: bool = False
    """Whether memory decides about no tile, so that results are the same wherever they are made: a
    `tile` of None then is `EVERYWHERE`, and one that does not fit an error."""
    backend: Backend = "torch"
    """What runs the network."""

    @property
    def side(self) -> int | None:
        """Of the tiles of a system that takes them from here, pixels."""
        return EVERYWHERE if self.same_everywhere and self.tile is None else self.tile

    def dtype(self, device: torch.device) -> torch.dtype:
        """Of the network's weights and activations; `auto` is bfloat16 on a GPU that computes in
        it, else float32."""
        if self.precision != "auto":
            return torch.bfloat16 if self.precision == "bf16" else torch.float32
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
