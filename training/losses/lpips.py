"""LPIPS on VGG-16 features, with weights from a file or from the published downloads.

The downloads are torch pickles from fixed addresses, read as tensors only, stored as safetensors.
No other pickle is ever opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.samples.weights import read_weights

VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Inputs in [-1, 1] to ImageNet-normalized ones: the constants of LPIPS version 0.1.
LPIPS_SHIFT = (-0.030, -0.088, -0.188)
LPIPS_SCALE = (0.458, 0.448, 0.450)

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
LINEARS_URL = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/"
    "vgg.pth"
)
DOWNLOADED = "flowmapsr-lpips-vgg16.safetensors"
REMEDY = (
    "set it to a safetensors file with the VGG-16 features and LPIPS layers, or set "
    "perceptual.kind to charbonnier or none"
)


def _max_pool() -> nn.Module:
    return nn.MaxPool2d(2)


def vgg16_slices(pool: Callable[[], nn.Module] = _max_pool) -> nn.ModuleList:
    """torchvision's `features` up to the last ReLU before each pooling, in five slices."""
    slices = nn.ModuleList()
    channels = 3
    for index, widths in enumerate(VGG16_WIDTHS):
        layers: list[nn.Module] = [] if index == 0 else [pool()]
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        slices.append(nn.Sequential(*layers))
    return slices


class LpipsDistance(nn.Module):
    """LPIPS 0.1 (Zhang et al., 2018): weighted squared distance of unit features, on VGG-16 or on
    the slices of another network."""

    shift: Tensor
    scale: Tensor

    def __init__(self, slices: nn.ModuleList | None = None) -> None:
        super().__init__()
        for name, values in (("shift", LPIPS_SHIFT), ("scale", LPIPS_SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.slices = vgg16_slices() if slices is None else slices
        self.linears = nn.ModuleList(
            nn.Conv2d(_width(features), 1, 1, bias=False) for features in self.slices
        )
        self.requires_grad_(False)

    def forward(self, prediction: Tensor, original: Tensor) -> Tensor:
        """(B, 3, H, W) twice, in [-1, 1] -> (B,)."""
        a, b = ((picture - self.shift) / self.scale for picture in (prediction, original))
        distance = prediction.new_zeros(len(prediction))
        for features, linear in zip(self.slices, self.linears, strict=True):
            a, b = features(a), features(b)
            difference = functional.normalize(a, dim=1) - functional.normalize(b, dim=1)
            distance = distance + linear(difference.square()).mean(dim=(1, 2, 3))
        return distance

    @classmethod
    def from_file(cls, path: str | Path) -> LpipsDistance:
        """Loads safetensors named like this module's parameters.

        Raises:
            FlowmapsrError: no such file, or other tensors in it; names the setting.
        """
        if not Path(path).is_file():
            raise FlowmapsrError(f"perceptual.weights: no file {path}; {REMEDY}")
        distance = cls()
        try:
            distance.load_state_dict(read_weights(Path(path)))
        except (RuntimeError, FlowmapsrError) as error:
            message = f"perceptual.weights: {path} has no LPIPS weights: {error}"
            raise FlowmapsrError(message) from error
        return distance


def _width(features: nn.Module) -> int:
    """Channels of the last convolution."""
    return [one.out_channels for one in features.modules() if isinstance(one, nn.Conv2d)][-1]


def lpips_weights(setting: str | None) -> Path:
    """The file of `perceptual.weights`; for None the published weights, downloaded if missing.

    Raises:
        FlowmapsrError: the download failed; names the file and the setting.
    """
    if setting is not None:
        return Path(setting)
    path = Path(torch.hub.get_dir()) / "checkpoints" / DOWNLOADED
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # a machine's workers start at the same time
        if not path.is_file():
            _download(path)
    return path


def _download(path: Path) -> None:
    try:
        vgg, linears = (
            torch.hub.load_state_dict_from_url(
                url, map_location="cpu", weights_only=True, file_name=name, progress=False
            )
            for url, name in ((VGG16_URL, "vgg16-397923af.pth"), (LINEARS_URL, "lpips-vgg.pth"))
        )
    except (OSError, URLError) as error:
        raise FlowmapsrError(
            f"perceptual.weights is not set, and the weights for {path} could not be downloaded "
            f"({error}): {REMEDY}"
        ) from error
    storage.write_bytes(str(path), safetensors.torch.save(convert_weights(vgg, linears)))


def convert_weights(vgg: dict[str, Tensor], linears: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG-16 (`features.0.weight` ...) and the lpips package's linear layers
    (`lin0.model.1.weight` ...) under the names of `LpipsDistance`."""
    with torch.device("meta"):
        slices = vgg16_slices()
    return {**convert_features(vgg, slices), **convert_linears(linears)}


def convert_features(features: Mapping[str, Tensor], slices: nn.ModuleList) -> dict[str, Tensor]:
    """torchvision's `features.0.weight` ... as the parameters `slices.0.0.weight` ...

    Raises:
        KeyError, ValueError: of another network.
    """
    names = [name.removesuffix(".weight") for name in slices.state_dict() if "weight" in name]
    numbers = sorted({int(name.split(".")[1]) for name in features if name.startswith("features.")})
    return {
        f"slices.{name}.{part}": features[f"features.{number}.{part}"].contiguous()
        for name, number in zip(names, numbers, strict=True)
        for part in ("weight", "bias")
    }


def convert_linears(linears: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The lpips package's `lin0.model.1.weight` ... as `linears.0.weight` ..."""
    return {
        f"linears.{block}.weight": linears[f"lin{block}.model.1.weight"].contiguous()
        for block in range(len(VGG16_WIDTHS))
    }
