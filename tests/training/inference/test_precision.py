"""bfloat16 is taken only where it gives what float32 gives."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch

from tests.support.models import saved_model
from training.inference.precision import agreement, loaded
from training.inference.tiles.tiler import Tiler
from training.restorer_protocol import LoadOptions, Restorer
from training.settings.model import ModelSettings
from training.systems import system_of

CPU = torch.device("cpu")


def load(folder: Path, options: LoadOptions, spoiled: float = 1.0) -> Restorer:
    """The model; in bf16 with its last convolution times `spoiled`."""
    restorer = system_of("flowmap").load(folder, CPU, options)
    if options.dtype(CPU) == torch.bfloat16:
        restorer.net.unet.conv_out.weight.data *= spoiled  # type: ignore[attr-defined]
    return restorer


@pytest.mark.parametrize(
    ("spoiled", "taken"), [(1.0, torch.bfloat16), (4.0, torch.float32), (math.nan, torch.float32)]
)
def test_auto_takes_bf16_where_it_agrees_with_fp32(
    spoiled: float,
    taken: torch.dtype,
    tmp_path: Path,
    tiny_model: ModelSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = saved_model(tmp_path / "model", tiny_model, trained=True)
    # As on a GPU that computes in it.
    monkeypatch.setattr(
        LoadOptions,
        "dtype",
        lambda options, _: torch.float32 if options.precision == "fp32" else torch.bfloat16,
    )
    with caplog.at_level(logging.WARNING):
        found = loaded(lambda how: load(folder, how, spoiled), LoadOptions(), CPU, Tiler())
    assert next(found.net.parameters()).dtype == taken  # type: ignore[attr-defined]
    assert ("restores in fp32" in caplog.text) == (taken == torch.float32)


def test_agreement_is_the_psnr_between_two_restorers(
    tmp_path: Path, tiny_model: ModelSettings
) -> None:
    folder = saved_model(tmp_path / "model", tiny_model, trained=True)
    exact = load(folder, LoadOptions(precision="fp32"))
    rounded = load(folder, LoadOptions(precision="bf16"))
    assert agreement(exact, exact, Tiler()) == math.inf
    assert 40 < agreement(rounded, exact, Tiler()) < 80
