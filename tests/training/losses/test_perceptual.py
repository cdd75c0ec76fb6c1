"""Pixel-space losses: distances against their formulas, patches, and missing weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from datagen.errors import FlowmapsrError
from datagen.samples.codecs import DctCodec
from training.losses import lpips
from training.losses.lpips import DOWNLOADED, VGG16_URL, LpipsDistance, convert_weights
from training.losses.perceptual import (
    PatchPerceptualLoss,
    charbonnier,
    load_perceptual_loss,
)
from training.settings.objective import Charbonnier, Lpips, NoPerceptual


def test_charbonnier_is_the_formula_and_zero_at_equality() -> None:
    a, b = torch.randn(2, 4, 3, 8, 8)
    expected = torch.stack(
        [((x - y) ** 2 + 0.01**2).sqrt().mean() - 0.01 for x, y in zip(a, b, strict=True)]
    )
    torch.testing.assert_close(charbonnier(a, b, epsilon=0.01), expected)
    torch.testing.assert_close(charbonnier(a, a, epsilon=0.01), torch.zeros(4))


def _pixels_and_latents() -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    return pixels, DctCodec().encode(pixels.float() / 127.5 - 1)


@pytest.mark.parametrize("patch", [8, 16, 512])
def test_patches_of_latents_and_pixels_match(patch: int) -> None:
    pixels, latents = _pixels_and_latents()
    perceptual_loss = PatchPerceptualLoss(
        partial(charbonnier, epsilon=1e-3), DctCodec(), strength=10.0, patch=patch
    )
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        loss = perceptual_loss(latents, pixels, torch.zeros(3), generator)
        assert loss.max() < 1e-3


def test_lambda_falls_from_strength_to_zero() -> None:
    pixels, latents = _pixels_and_latents()
    perceptual_loss = PatchPerceptualLoss(
        partial(charbonnier, epsilon=1e-3), DctCodec(), strength=10.0, patch=512
    )
    t = torch.tensor([0.0, 0.5, 1.0])
    wrong = latents + 0.5 * torch.randn_like(latents[:1])
    loss = perceptual_loss(wrong, pixels, t, torch.Generator())
    plain = partial(charbonnier, epsilon=1e-3)(DctCodec().decode(wrong), pixels.float() / 127.5 - 1)
    torch.testing.assert_close(loss, 10 * (1 - t) * plain, rtol=1e-4, atol=1e-5)


class _CountingCodec(DctCodec):
    decoded = 0

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded += 1
        return super().decode(latents)


def test_recomputing_the_decoder_gives_the_same_gradient() -> None:
    pixels, latents = _pixels_and_latents()
    codec, t = _CountingCodec(), torch.tensor([0.0, 0.3, 0.6])
    distance = partial(charbonnier, epsilon=1e-3)
    x0 = (latents + 0.1).requires_grad_()
    perceptual_loss = PatchPerceptualLoss(distance, codec, strength=2.0, patch=512)
    perceptual_loss(x0, pixels, t, torch.Generator()).sum().backward()
    assert codec.decoded == 2
    plain = (latents + 0.1).requires_grad_()
    loss = 2 * (1 - t) * distance(codec.decode(plain), pixels.float() / 127.5 - 1)
    loss.sum().backward()
    assert x0.grad is not None and plain.grad is not None
    torch.testing.assert_close(x0.grad, plain.grad)


def _random_lpips(path: Path) -> None:
    torch.manual_seed(0)
    distance = LpipsDistance()
    state = {k: torch.randn_like(v) * 0.05 for k, v in distance.state_dict().items()}
    state = {k: v.abs() if k.startswith("linears") else v for k, v in state.items()}
    safetensors.torch.save_file(state, path)


def test_lpips_is_the_weighted_distance_of_unit_features(tmp_path: Path) -> None:
    """Independent reference: VGG-16 written as one plain list of convolutions and pools."""
    path = tmp_path / "lpips.safetensors"
    _random_lpips(path)
    state = safetensors.torch.load_file(path)
    a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = (a - shift) / scale, (b - shift) / scale
    expected = torch.zeros(2)
    for block, convolutions in enumerate([2, 2, 3, 3, 3]):
        first = 0 if block == 0 else 1
        if block:
            x, y = functional.max_pool2d(x, 2), functional.max_pool2d(y, 2)
        for i in range(convolutions):
            name = f"slices.{block}.{first + 2 * i}"
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            x, y = (functional.conv2d(z, weight, bias, padding=1).relu() for z in (x, y))
        unit_x, unit_y = (z / (z.norm(dim=1, keepdim=True) + 1e-12) for z in (x, y))
        weighted = (unit_x - unit_y) ** 2 * state[f"linears.{block}.weight"].view(1, -1, 1, 1)
        expected += weighted.sum(dim=1).mean(dim=(1, 2))
    distance = LpipsDistance.from_file(str(path))
    torch.testing.assert_close(distance(a, b), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(distance(a, a), torch.zeros(2))


def test_missing_or_wrong_weights_name_file_and_setting(tmp_path: Path) -> None:
    missing = Lpips(weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(FlowmapsrError, match=r"perceptual\.weights.*none\.safetensors"):
        load_perceptual_loss(missing, DctCodec(), torch.device("cpu"))
    wrong = tmp_path / "wrong.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, wrong)
    with pytest.raises(FlowmapsrError, match=r"perceptual\.weights.*wrong\.safetensors"):
        load_perceptual_loss(Lpips(weights=str(wrong)), DctCodec(), torch.device("cpu"))


def test_the_recipe_chooses_the_loss() -> None:
    device = torch.device("cpu")
    assert load_perceptual_loss(NoPerceptual(), DctCodec(), device) is None
    charbonnier = load_perceptual_loss(Charbonnier(strength=2.0), DctCodec(), device)
    assert charbonnier is not None and charbonnier.strength == 2.0


def _published() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights named as torchvision's VGG-16 and lpips' linear layers are published."""
    torch.manual_seed(1)
    vgg, channels, number = {}, 3, 0
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width:
            vgg[f"features.{number}.weight"] = torch.randn(width, channels, 3, 3) * 0.05
            vgg[f"features.{number}.bias"] = torch.randn(width) * 0.05
            channels = width
        number += 2 if width else 1
    vgg["classifier.0.weight"] = torch.zeros(1)
    widths = (64, 128, 256, 512, 512)
    linears = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}
    return vgg, linears


def test_published_weights_are_converted_layer_by_layer() -> None:
    vgg, linears = _published()
    distance = LpipsDistance()
    distance.load_state_dict(convert_weights(vgg, linears))
    x = torch.randn(1, 3, 16, 16)
    ours, number = x, 0
    for block in distance.slices:
        ours = block(ours)
    theirs = x
    for width in (2, 2, 3, 3, 3):
        if number:
            theirs, number = functional.max_pool2d(theirs, 2), number + 1
        for _ in range(width):
            weight, bias = vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"]
            theirs, number = functional.conv2d(theirs, weight, bias, padding=1).relu(), number + 2
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(distance.linears[4].weight, linears["lin4.model.1.weight"])


def test_without_a_file_the_usual_weights_are_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published files served from this disk, through torch's download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name, weights in zip(("vgg", "linears"), _published(), strict=True):
        torch.save(weights, tmp_path / f"{name}.pth")
    monkeypatch.setattr(lpips, "VGG16_URL", (tmp_path / "vgg.pth").as_uri())
    monkeypatch.setattr(lpips, "LINEARS_URL", (tmp_path / "linears.pth").as_uri())
    first = load_perceptual_loss(Lpips(), DctCodec(), torch.device("cpu"))
    assert first is not None and first.patch == 512
    assert (tmp_path / "home" / "hub" / "checkpoints" / DOWNLOADED).is_file()
    (tmp_path / "vgg.pth").unlink()
    (tmp_path / "home" / "hub" / "checkpoints" / Path(VGG16_URL).name).unlink()
    load_perceptual_loss(Lpips(), DctCodec(), torch.device("cpu"))


def test_a_download_that_fails_names_file_and_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(lpips, "VGG16_URL", (tmp_path / "nothing.pth").as_uri())
    with pytest.raises(FlowmapsrError, match=rf"perceptual\.weights.*{DOWNLOADED}"):
        load_perceptual_loss(Lpips(), DctCodec(), torch.device("cpu"))
