"""Metrics of an extra: without it they are named, with its license, and nothing else suffers."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from training.evaluation.metrics.catalog import find_metrics
from training.settings.evaluation import Convention


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is not None, reason="pyiqa is installed")
def test_without_pyiqa_the_line_says_how_to_get_it_and_its_license() -> None:
    before = dict(os.environ)
    found = find_metrics(("musiq_koniq", "clipiqa", "niqe"), Convention())
    assert [one.name for one in found.of_pictures] == ["psnr_rgb", "ssim_rgb", "niqe"]
    assert [line.partition(":")[0] for line in found.left_out] == ["musiq_koniq", "clipiqa"]
    for line in found.left_out:
        assert "pip install 'flowmapsr[iqa]'" in line and "PolyForm Noncommercial" in line
    assert dict(os.environ) == before


def test_torch_keeps_to_tensors_where_a_package_asks_for_more(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that `iqa.py` sets while pyiqa reads its downloads."""
    path = os.path.join(tmp_path, "weights.pth")
    torch.save({"params": torch.zeros(2), "more": pytest.approx}, path)
    torch.load(path, weights_only=False)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(Exception, match="Unsupported|weights_only"):
        torch.load(path, weights_only=False)
