"""What a stage of ELIR starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from tests.support.tiny import WARMUP, RunMaker
from training.elir.initial import initial_net
from training.elir.model_folder import ElirConfig, load_networks, save_model
from training.elir.network import Networks
from training.elir.public_names import public_state
from training.elir.sampler import restore
from training.preflight import check_run
from training.run_dir.paths import StagePaths
from training.settings.elir import ElirModelSettings, LatentConsistency

MODEL = ElirModelSettings.model_validate(
    {"codec": {"kind": "dct4"}, "width": 32, "coarse_growth": 4, "expand": 2}
)
PIXELS = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def _random_networks() -> Networks:
    """None of whose weights is that of a fresh stage."""
    net, report = initial_net(MODEL, None, StagePaths(Path("/none"), "elir"))
    assert report is None
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net.networks


def _restored(networks: Networks) -> Tensor:
    noise = torch.randn(1, 48, 8, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return restore(networks, PIXELS, noise, 0.1, 2)


def _saved(networks: Networks, folder: Path) -> ElirConfig:
    config = ElirConfig(
        model=MODEL,
        latent_channels=48,
        objective=LatentConsistency(),
        degradation=DegradationSettings(),
        stage="elir",
        recipe_digest="",
        dataset_digest="",
    )
    save_model(folder, networks, config)
    return config


def test_an_untrained_stage_restores_the_coarse_estimate() -> None:
    net, _ = initial_net(MODEL, None, StagePaths(Path("/none"), "elir"))
    z = torch.randn(1, 48, 8, 8)
    assert not net.networks.field(z, torch.zeros(1)).any()


def test_a_model_folder_restores_and_starts_a_stage_as_the_same_function(tmp_path: Path) -> None:
    networks = _random_networks()
    config = _saved(networks, tmp_path / "model")
    expected = _restored(networks)
    loaded = load_networks(tmp_path / "model", config, torch.device("cpu"))
    torch.testing.assert_close(_restored(loaded), expected, atol=1e-5, rtol=0)
    net, report = initial_net(MODEL, str(tmp_path / "model"), StagePaths(tmp_path, "elir"))
    torch.testing.assert_close(_restored(net.networks), expected, atol=1e-5, rtol=0)
    assert report is not None and len(report.loaded) > 100 and not report.new


def test_a_file_with_the_published_names_starts_a_stage(tmp_path: Path) -> None:
    networks = _random_networks()
    file = tmp_path / "elir.safetensors"
    safetensors.torch.save_file(public_state(networks), file)
    net, report = initial_net(MODEL, str(file), StagePaths(tmp_path, "elir"))
    torch.testing.assert_close(_restored(net.networks), _restored(networks), atol=1e-5, rtol=0)
    assert report is not None and report.source == str(file)


def test_weights_of_other_sizes_or_kinds_are_refused_with_the_setting(
    tmp_path: Path, run_recipe: RunMaker
) -> None:
    networks = _random_networks()
    _saved(networks, tmp_path / "model")
    safetensors.torch.save_file(public_state(networks), tmp_path / "elir.safetensors")
    folder = StagePaths(tmp_path, "elir")
    wide = MODEL.model_copy(update={"width": 64})
    for place, message in (
        ("model", "its model.width is 32, the recipe's 64: set model.width to it"),
        ("elir.safetensors", "its field has width 32, and model.width is 64: set model.width=32"),
    ):
        with pytest.raises(FlowmapsrError, match=f"stage 'elir': init_from .*{message}"):
            initial_net(wide, str(tmp_path / place), folder)
    config = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(config.replace('"elir",', '"flowmap",', 1))
    with pytest.raises(FlowmapsrError, match="of kind 'flowmap', and model.kind is 'elir'"):
        initial_net(MODEL, str(tmp_path / "model"), folder)
    torch.save({"enc.layers.0.weight": torch.zeros(1)}, tmp_path / "elir.pth")
    recipe = run_recipe(tmp_path / "run", stages=[{**WARMUP, "init_from": f"{tmp_path}/elir.pth"}])
    with pytest.raises(FlowmapsrError, match="init_from: .*elir.pth .*pickle.*safetensors"):
        check_run(recipe)
