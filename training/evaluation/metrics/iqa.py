"""MANIQA, MUSIQ and CLIP-IQA by pyiqa, the extra `iqa`.

pyiqa, whose license is PolyForm Noncommercial 1.0.0, fetches its own weights.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from training.evaluation.metrics.metric import NotMeasurable, PictureMetric, Unavailable

IqaName = Literal["maniqa_koniq", "maniqa_pipal", "musiq_koniq", "clipiqa"]
_THEIRS: dict[IqaName, str] = {
    "maniqa_koniq": "maniqa",
    "maniqa_pipal": "maniqa-pipal",
    "musiq_koniq": "musiq",
    "clipiqa": "clipiqa",
}
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def iqa_metric(name: IqaName, device: torch.device) -> PictureMetric:
    """Higher is better; values are those of pyiqa, MUSIQ from 0 to 100.

    Raises:
        Unavailable: pyiqa is not installed, or does not get its weights.
    """
    try:
        with _quiet(), _no_pickles():
            import pyiqa

            network = pyiqa.create_metric(_THEIRS[name], device=device)
    except ImportError as error:
        raise Unavailable(
            f"needs pyiqa ({error}): pip install 'flowmapsr[iqa]'; its license is PolyForm "
            "Noncommercial 1.0.0"
        ) from error
    except Exception as error:  # of many kinds: the network, its server's answers, its weights
        raise Unavailable(f"pyiqa cannot make it: {_in_one_line(error)}") from error
    return PictureMetric(name, "higher", _measure(network, device), needs_original=False)


def _measure(network: Any, device: torch.device) -> Any:
    @torch.inference_mode()
    def measure(result: np.ndarray) -> float:
        pixels = torch.from_numpy(result.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        try:
            return float(network(pixels))
        except Exception as error:  # another package's, which must not end an evaluation
            raise NotMeasurable(f"pyiqa: {_in_one_line(error)}") from error

    return measure


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """pyiqa prints what it loads, where a command's JSON goes."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """pyiqa opens its downloads as pickles; they are read as tensors only."""
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TENSORS_ONLY]
        else:
            os.environ[_TENSORS_ONLY] = before


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
