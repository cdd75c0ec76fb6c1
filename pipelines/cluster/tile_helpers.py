"""Other workers of the connected Ray cluster that share the work on tiles of one large picture.

A tile's work depends on the tile alone, and its results are used in the order of the tiles, so that
their number changes no bit. A helper that is lost is replaced, and its tiles are done again here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from datagen.errors import first_line
from datagen.tiles.run import N, Run, X, Y
from pipelines.cluster.actor_pool import ATTEMPTS
from pipelines.cluster.node_check import HERE
from pipelines.cluster.shared_model import SharedModel, this_node
from pipelines.cluster.workers import WorkerPlan
from training.inference.bands import network_for
from training.inference.tiles.tiler import Key
from training.machines import code_version, require_same_code

log = logging.getLogger(__name__)

_AT_ONCE = 2
"""Tiles that a helper is given: the next one is there when it has done one."""


class _TileHelper:
    """The actor: one copy of the model."""

    def __init__(self, model: SharedModel, version: str) -> None:
        require_same_code({HERE: version, this_node(): code_version()}, here=HERE)
        restorer = model.load().restorer
        parts = restorer.parts()
        assert parts is not None, "it makes no picture in rows"
        self._device = restorer.device
        self._network = cache(partial(network_for, parts=parts, device=self._device))

    @torch.inference_mode()
    def do(self, sent: tuple[Key, Callable[[Any, Any], Any]], tile: Any) -> Any:
        key, work = sent
        return _on("cpu", work(self._network(key), _on(self._device, tile)))


@dataclass(eq=False)
class _Helper:
    actor: Any
    given: list[Any] = field(default_factory=list)
    """References of results that are not there yet, when last asked."""


@dataclass
class _Tile:
    """One that a helper was given."""

    tile: Any
    helper: _Helper
    result: Any
    """Its reference."""


@dataclass
class _Done:
    result: Any


class TileHelpers:
    """Gives them tiles, and does what they have no time for in this process."""

    def __init__(self, model: SharedModel, plan: WorkerPlan) -> None:
        """
        Args:
            plan: how many, and what each asks for.
        """
        self._model, self._plan = model, plan
        self._starting: dict[Any, _Helper] = {}
        self._helpers: list[_Helper] = []
        self._lost = 0
        self.helped = 0
        """Tiles that were done elsewhere."""

    def runs(self, key: Key) -> Run:
        """What does the work for a `Tiler`."""
        return partial(self._run, key)

    def _run(
        self, key: Key, network: N, work: Callable[[N, X], Y], tiles: Iterable[X]
    ) -> Iterator[Y]:
        self._start()
        sent = ray.put((key, work))
        pending: deque[_Tile | _Done] = deque()
        most = _AT_ONCE * (self._plan.count + 1)  # more would fill the memory
        for tile in tiles:
            helper = self._free()
            if helper is None:
                pending.append(_Done(work(network, tile)))
            else:
                result = helper.actor.do.remote(sent, _on("cpu", tile))
                helper.given.append(result)
                pending.append(_Tile(tile, helper, result))
            while pending and (len(pending) > most or self._is_there(pending[0])):
                yield self._result(pending.popleft(), network, work)
        while pending:
            yield self._result(pending.popleft(), network, work)

    def _start(self) -> None:
        """Starts those that are missing; nobody waits for them."""
        if self._lost >= ATTEMPTS:
            return
        each = self._plan.each
        remote: Any = ray.remote(num_cpus=each.cpus, num_gpus=each.gpus, memory=each.memory)
        for _ in range(self._plan.count - len(self._helpers) - len(self._starting)):
            actor = remote(_TileHelper).remote(self._model, code_version())
            self._starting[actor.__ray_ready__.remote()] = _Helper(actor)

    def _free(self) -> _Helper | None:
        """The helper with the least to do, if it can take one more tile."""
        if self._starting:
            started, _ = ray.wait(list(self._starting), timeout=0)
            self._helpers += [self._starting.pop(each) for each in started]
        for helper in self._helpers:
            if helper.given:
                count = len(helper.given)
                _, helper.given = ray.wait(helper.given, num_returns=count, timeout=0)
        free = min(self._helpers, key=lambda helper: len(helper.given), default=None)
        return free if free is not None and len(free.given) < _AT_ONCE else None

    def _is_there(self, tile: _Tile | _Done) -> bool:
        return isinstance(tile, _Done) or bool(ray.wait([tile.result], timeout=0)[0])

    def _result(self, tile: _Tile | _Done, network: N, work: Callable[[N, Any], Y]) -> Y:
        if isinstance(tile, _Done):
            done: Y = tile.result
            return done
        try:
            result: Y = _on(_device(tile.tile), ray.get(tile.result))
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self._lose(tile.helper, error)
            return work(network, tile.tile)
        self.helped += 1
        return result

    def _lose(self, helper: _Helper, error: RayError) -> None:
        if helper not in self._helpers:
            return  # it had more than one tile
        self._helpers.remove(helper)
        self._lost += 1
        ray.kill(helper.actor)  # it may be cut off but alive
        log.warning("a worker that helped with tiles was lost: %s", first_line(error))
        self._start()


def _device(tile: Any) -> torch.device:
    """Where this process would have left what it makes of a tile."""
    tensor = tile if isinstance(tile, Tensor) else tile[0]
    assert isinstance(tensor, Tensor)
    return tensor.device


def _on(device: torch.device | str, value: Any) -> Any:
    """With all tensors of it on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        moved = [_on(device, one) for one in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return [_on(device, one) for one in value] if isinstance(value, list) else value
