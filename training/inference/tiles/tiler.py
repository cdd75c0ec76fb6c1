"""Runs a network on a whole picture while it fits into memory, and on tiles of it where not."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from datagen.errors import FlowmapsrError
from datagen.tiles.run import Run, here
from training.inference.tiles.batches import TileBatches
from training.inference.tiles.memory import TileMemory, TileWork
from training.inference.tiles.network_pass import Made, Measured, TilePass
from training.inference.tiles.shared_norms import Sums, added
from training.inference.tiles.transfers import ahead
from training.inference.tiling import Tile, blended_rows, tiles
from training.monitoring.memory import is_out_of_memory

Done = TypeVar("Done", Made, Measured)
log = logging.getLogger(__name__)

OVERLAP = 64
"""Least overlap of tiles, pixels."""
ATTENTION_OVERLAP = 128
"""The same of networks with attention, whose results depend more on what a tile shows."""
_SMALLEST = 256
"""Side of the smallest tile that is tried, pixels."""


class PassKey(NamedTuple):
    """Which of a restorer's passes some work on tiles is part of."""

    steps: int
    """Network evaluations of the picture."""
    number: int
    """Of the pass, from 0."""


Key = PassKey | None
"""Whose network some work on tiles is for; None is the codec."""


class Tiler:
    """Decides on tiles for one model, and runs them."""

    def __init__(
        self,
        *,
        tile: int | None = None,
        max_memory: int | None = None,
        fixed: bool = False,
        runs: Callable[[Key], Run] = lambda key: here,
        batch: int | None = None,
    ) -> None:
        """
        Args:
            tile: side of a tile, pixels; None takes the largest that fits into memory, and no tiles
                where the picture does.
            max_memory: what this process may hold on the device, bytes; None takes most of what is
                free.
            fixed: a tile that does not fit is an error.
            runs: what does the work on the tiles of a picture in bands.
            batch: tiles at a time, which changes no bit; None takes those that fit on a GPU, and
                one on a CPU, where more save no time.
        """
        self.tile, self.max_memory, self.fixed, self.runs = tile, max_memory, fixed, runs
        self.batch, self.batches = batch, TileBatches()
        self._memory = TileMemory(max_memory)
        self._told = False

    def __call__(
        self,
        net: nn.Module,
        fn: Callable[[Tensor], Tensor],
        x: Tensor,
        *,
        pixels: int,
        multiple: int,
        on_part: Callable[[float], None] = lambda share: None,
    ) -> Tensor:
        """As `InTiles`. A tile whose result is not finite is done again in fp32.

        Args:
            on_part: called with the share of the work that is done, after every tile.

        Raises:
            FlowmapsrError: memory is too small for the smallest tile.
        """
        whole: Tensor | None = None
        held = 3 * 4 * x.numel()  # the result, its part and the next latents, float32
        given = self.rows(net, fn, x, pixels=pixels, multiple=multiple, held=held, on_part=on_part)
        for rows, part in given:
            if part.shape[-2] == x.shape[-2]:
                return part
            if whole is None:
                whole = part.new_empty(*part.shape[:2], *x.shape[-2:])
            whole[..., rows, :] = part
        assert whole is not None
        return whole

    def rows(
        self,
        net: nn.Module,
        fn: Callable[[Tensor], Tensor],
        x: Tensor,
        *,
        pixels: int,
        multiple: int,
        held: int = 0,
        on_part: Callable[[float], None] = lambda share: None,
        run: Run = here,
    ) -> Iterator[tuple[slice, Tensor]]:
        """As a call, but the result comes in rows from top to bottom, with their numbers; x may be
        replaced in rows that were given.

        Args:
            x: on any device; `fn` takes its tiles to that of the network.
            held: bytes that will be needed beside the network's.
            on_part: as of a call.
            run: does the work on the tiles, whose network is a `TilePass`.
        """
        shown = ATTENTION_OVERLAP if _attends(net) else OVERLAP
        overlap = multiple * math.ceil(shown / pixels / multiple)
        smallest = max(multiple * math.ceil(_SMALLEST / pixels / multiple), overlap + multiple)
        work = TileWork(net, fn, x, pixels, smallest, held)
        side = self.tile // pixels if self.tile else self._memory.side(work)
        given = False
        while True:
            side = max(smallest, side // multiple * multiple)
            try:
                places = tiles(x.shape[-2], x.shape[-1], side, overlap, multiple)
                batches = self._batches_of(work, places, side, run)
                for rows, part in self._rows(work, places, batches, on_part, run):
                    given = True
                    yield rows, part
                return
            except (MemoryError, RuntimeError) as error:
                if given or not is_out_of_memory(error):
                    raise
                if self.fixed:
                    raise FlowmapsrError(
                        f"memory is too small for a tile of {side * pixels} pixels, and tiles are "
                        "to be the same on all workers: give a smaller --tile"
                    ) from error
                if side <= smallest:
                    raise FlowmapsrError(
                        f"memory is too small for a tile of {side * pixels} pixels: close other "
                        "programs, or use a device with more of it"
                    ) from error
            side = min(side, max(x.shape[-2:])) // 2
            log.warning("memory was full: going on with tiles of %d pixels", side * pixels)
            self.tile = side * pixels

    def _batches_of(
        self, work: TileWork, places: list[Tile], side: int, run: Run
    ) -> list[list[Tile]]:
        """The places in order, as many together as are worked on at a time. Those that are left
        over stay alone, as batches of another size would have to be tried too."""
        count = 1
        if run is here:  # others may have less memory
            count = min(len(places), self.batch or self._memory.at_a_time(work, side))
        whole = len(places) // count * count
        starts = range(0, whole, count)
        return [*(places[at : at + count] for at in starts), *([one] for one in places[whole:])]

    def _rows(
        self,
        work: TileWork,
        places: list[Tile],
        batches: list[list[Tile]],
        on_part: Callable[[float], None],
        run: Run,
    ) -> Iterator[tuple[slice, Tensor]]:
        x, tile_pass = work.x, TilePass(work.net, work.fn, self.batches)
        if len(places) == 1:
            (made,) = tile_pass.made(x)
            yield slice(0, x.shape[-2]), self._result(made)
            return
        measures = bool(tile_pass.norms.norms)
        done, passes = itertools.count(1), len(places) * (2 if measures else 1)

        def each(of_batch: Callable[[TilePass, Tensor], list[Done]]) -> Iterator[Done]:
            seen: Iterator[Tensor] = (
                torch.cat([place.of(x) for place in batch]) for batch in batches
            )
            if run is here and x.device.type == "cpu":
                seen = ahead(seen, work.device)
            for found in run(tile_pass, of_batch, seen):
                for one in found:
                    on_part(next(done) / passes)
                    yield one

        made_of = TilePass.made
        if measures:
            sums = added(self._sums(one) for one in each(TilePass.measured))
            made_of = partial(TilePass.made, scales=tile_pass.norms.scales(sums))
        yield from blended_rows((self._result(one) for one in each(made_of)), places)

    def _result(self, made: Made) -> Tensor:
        if made.again:
            self._tell()
        return made.result

    def _sums(self, measured: Measured) -> Sums:
        if measured.again:
            self._tell()
        return measured.sums

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            log.warning("the network gave values that are not finite: such tiles are done in fp32")


def _attends(net: nn.Module) -> bool:
    return any(type(module).__name__ == "Attention" for module in net.modules())
