"""A network of ncnn (the extra `ncnn`): a `.param` with its `.bin` beside it, or a folder that
holds one, as Real-ESRGAN and upscayl publish theirs; RGB in [0, 1]. Runs on the CPU."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datagen.errors import FlowmapsrError
from training.evaluation.other_networks.enlarger import Enlarger

_MAGIC = "7767517"
_PROBE = 64
"""Side of the picture that tells the factor."""


class Ends(NamedTuple):
    """Names of the blobs through which a picture goes in and out."""

    inside: str
    outside: str


@lru_cache(maxsize=2)  # for all scales
def ncnn_network(place: str) -> Enlarger:
    """
    Raises:
        FlowmapsrError: the place does not hold one network, or none that enlarges a picture by a
            whole factor.
    """
    import ncnn

    param, weights = _files(Path(place))
    ends = find_ends(param.read_text(encoding="utf-8", errors="replace"), param)
    network = ncnn.Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = torch.get_num_threads()
    if network.load_param(str(param)) != 0 or network.load_model(str(weights)) != 0:
        raise FlowmapsrError(f"{param} and {weights.name} do not belong together, or are damaged")

    def run(picture: np.ndarray) -> np.ndarray:
        return _run(ncnn, network, ends, picture)

    return Enlarger(_factor(run, param), run)


def _files(place: Path) -> tuple[Path, Path]:
    params = [place] if place.suffix == ".param" else sorted(place.glob("*.param"))
    if len(params) != 1:
        names = ", ".join(one.name for one in params) or "none"
        raise FlowmapsrError(f"{place} must hold one .param with its .bin; name one of: {names}")
    weights = params[0].with_suffix(".bin")
    if not weights.is_file():
        raise FlowmapsrError(f"{weights}, the weights of {params[0].name}, does not exist")
    return params[0], weights


def find_ends(text: str, place: object) -> Ends:
    """Of a `.param`: the one blob that is given, and the one that is made and used by no layer.

    Raises:
        FlowmapsrError: it is none, or has several of either.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != [_MAGIC]:
        raise FlowmapsrError(f"{place} is no text description of a network of ncnn")
    given: list[str] = []
    made: dict[str, None] = {}
    used: set[str] = set()
    try:
        for kind, _, inputs, outputs, *rest in lines[2:]:
            split, end = int(inputs), int(inputs) + int(outputs)
            used |= set(rest[:split])
            made |= dict.fromkeys(rest[split:end])
            given += rest[split:end] if kind == "Input" else []
    except ValueError as error:
        raise FlowmapsrError(f"{place} is damaged") from error
    results = [name for name in made if name not in used]
    if len(given) != 1 or len(results) != 1:
        many = f"{len(given)} pictures go in and {len(results)} come out"
        raise FlowmapsrError(f"{place} describes no network of one picture: {many}")
    return Ends(given[0], results[0])


def _run(ncnn: Any, network: Any, ends: Ends, picture: np.ndarray) -> np.ndarray:
    """RGB float32 (h, w, 3) -> (H, W, 3)."""
    extractor = network.create_extractor()
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    extractor.input(ends.inside, ncnn.Mat(planes).clone())
    code, found = extractor.extract(ends.outside)
    if code != 0:
        raise RuntimeError(f"ncnn failed with {code}")
    return np.array(found).transpose(1, 2, 0)


def _factor(run: Any, param: Path) -> int:
    made = run(np.full((_PROBE, _PROBE, 3), 0.5, np.float32))
    factor, rest = divmod(made.shape[0], _PROBE)
    if rest or factor < 1 or made.shape != (factor * _PROBE, factor * _PROBE, 3):
        height, width, colors = made.shape
        raise FlowmapsrError(
            f"{param} makes {width}x{height} in {colors} colors of {_PROBE}x{_PROBE} in 3; name a "
            "network that enlarges by a whole factor"
        )
    return factor
