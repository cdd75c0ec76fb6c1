"""Metrics that look with a network, against the packages of the field.

`tests/golden/network_metrics.json` holds what those gave with the same random weights, and how.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from skimage import data

from tests.support.random_networks import random_weights, save_random_weights
from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.metrics.metric import Metrics, NotMeasurable
from training.evaluation.metrics.weights import ALEXNET, ARCFACE, INCEPTION, VGG16, Published
from training.settings.evaluation import Convention, MetricName

GOLDEN = json.loads((Path(__file__).parents[3] / "golden/network_metrics.json").read_text())


def _pictures() -> tuple[np.ndarray, np.ndarray]:
    """An original, and the same with noise."""
    original = data.astronaut()[80:180, 170:290]
    noise = np.random.default_rng(0).normal(0, 25, original.shape)
    return original, (original + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = (ALEXNET.file, VGG16.file, INCEPTION.file, ARCFACE.file)
    return save_random_weights(tmp_path_factory.mktemp("weights"), *files)


def _found(folder: Path, *names: MetricName) -> Metrics:
    return find_metrics(names, Convention(), weights=str(folder))


def test_distances_are_those_of_the_packages(folder: Path) -> None:
    original, result = _pictures()
    found = _found(folder, "lpips_alex", "lpips_vgg", "dists", "ids_degrees")
    assert not found.left_out
    values = {one.name: one.value(result, original) for one in found.of_pictures[2:]}
    for name in ("lpips_alex", "lpips_vgg", "dists"):
        assert values[name] == pytest.approx(GOLDEN[name], abs=1e-6), name
    assert values["ids_degrees"] == pytest.approx(GOLDEN["ids_degrees"], abs=1e-3)
    for one in found.of_pictures[2:]:
        assert one.better == "lower"
        assert one.value(original, original) == pytest.approx(0, abs=2e-3), one.name
        with pytest.raises(NotMeasurable, match="original of the same size"):
            one.value(result)


def test_features_are_those_of_pytorch_fid(folder: Path) -> None:
    patches, whole = _found(folder, "kid_patches", "kid_whole").of_sets
    (features,) = patches.features(data.astronaut()[:400, :500])
    assert features[:6] == pytest.approx(GOLDEN["inception_first"], abs=1e-6)
    assert np.linalg.norm(features) == pytest.approx(GOLDEN["inception_norm"], rel=1e-6)
    assert patches.features(data.astronaut()[:, :299].repeat(2, axis=0)).shape == (3, 2048)
    # A picture of 299 pixels needs no resizing.
    assert whole.features(data.astronaut()[:299, :299]) == pytest.approx(features[None], abs=1e-6)
    assert whole.features(data.astronaut()[:20, :30]).shape == (1, 2048)
    with pytest.raises(NotMeasurable, match="500x298 is smaller than 299"):
        patches.features(data.astronaut()[:298, :500])


def test_fid_brings_kid_and_shares_its_work(folder: Path) -> None:
    found = _found(folder, "fid_whole", "fid_patches").of_sets
    assert [one.name for one in found] == ["fid_whole", "kid_whole", "fid_patches", "kid_patches"]
    assert found[0].features is found[1].features is not found[2].features


def test_pictures_smaller_than_a_network_sees_are_told(folder: Path) -> None:
    original, result = _pictures()
    found = {one.name: one for one in _found(folder, "lpips_alex", "dists").of_pictures}
    assert found["lpips_alex"].value(result[:31, :31], original[:31, :31]) > 0
    with pytest.raises(NotMeasurable, match="40x30 is smaller than 31 pixels"):
        found["lpips_alex"].value(result[:30, :40], original[:30, :40])
    with pytest.raises(NotMeasurable, match="smaller than 16"):
        found["dists"].value(result[:15, :40], original[:15, :40])


def test_missing_and_wrong_files_are_named_and_nothing_else_suffers(tmp_path: Path) -> None:
    folder = save_random_weights(tmp_path, ALEXNET.file)
    (folder / ALEXNET.file).rename(folder / VGG16.file)  # another network
    (folder / INCEPTION.file).write_bytes(b"\x80\x02}q\x00.")  # a pickle
    broken = random_weights(ALEXNET.file)
    broken["features.3.weight"][0] = torch.nan
    safetensors.torch.save_file(broken, folder / ALEXNET.file)
    found = _found(
        folder,
        "niqe",
        "lpips_alex",
        "lpips_vgg",
        "dists",
        "fid_whole",
        "kid_patches",
        "ids_degrees",
    )
    assert [one.name for one in found.of_pictures] == ["psnr_rgb", "ssim_rgb", "niqe"]
    assert found.of_sets == ()
    lines = dict(line.split(": ", 1) for line in found.left_out)
    assert "features.3.weight are not finite" in lines["lpips_alex"]
    for name in ("lpips_vgg", "dists"):
        assert f"{folder / VGG16.file} does not hold torchvision's VGG-16" in lines[name]
    for name in ("fid_whole", "kid_patches"):
        assert str(folder / INCEPTION.file) in lines[name]
    assert f"no {folder / ARCFACE.file}; without --metric-weights" in lines["ids_degrees"]
    assert ARCFACE.address in lines["ids_degrees"]
    assert all("\n" not in line for line in found.left_out)


def test_downloads_are_checked_stored_and_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    there = tmp_path / "alexnet.pth"
    torch.save(random_weights(ALEXNET.file), there)

    def published(address: str, digits: str) -> None:
        values = Published(ALEXNET.file, ALEXNET.what, address, digits)
        monkeypatch.setattr("training.evaluation.metrics.networks.ALEXNET", values)

    published((tmp_path / "nothing.pth").as_uri(), "")
    (line,) = find_metrics(("lpips_alex",), Convention()).left_out
    assert "cannot be reached" in line and "alexnet.safetensors" in line
    published(there.as_uri(), "0" * 64)
    (line,) = find_metrics(("lpips_alex",), Convention()).left_out
    assert "another file" in line
    published(there.as_uri(), "")
    original, result = _pictures()
    metric = find_metrics(("lpips_alex",), Convention()).of_pictures[-1]
    assert metric.value(result, original) == pytest.approx(GOLDEN["lpips_alex"], abs=1e-6)
    there.unlink()
    assert not find_metrics(("lpips_alex",), Convention()).left_out
