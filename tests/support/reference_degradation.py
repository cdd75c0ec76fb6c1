"""Turns an image and drawn parameters into an LQ in a plain way, the baseline of the benchmark.

Two paths of the Real-ESRGAN pipeline written for clarity, not speed: NumPy with OpenCV, and torch
with a differentiable JPEG. They take the parameters that `datagen.degradation.draw` draws, so all
do the same work.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datagen.degradation.apply import small_size
from datagen.degradation.masks import kept_pixels
from datagen.degradation.parameters import (
    BlurParams,
    DegradationParams,
    DownscaleParams,
    GaussianNoiseParams,
    JpegParams,
    MaskParams,
    OperationParams,
    PoissonNoiseParams,
    ResizeBackParams,
    ResizeParams,
    SincParams,
)

_CV2_MODES = {
    "nearest": cv2.INTER_NEAREST_EXACT,
    "area": cv2.INTER_AREA,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def degrade_numpy(hq: np.ndarray, drawn: DegradationParams) -> np.ndarray:
    """uint8 (H, W, 3) to float32 (H, W, 3) in [0, 1] with whole kernels and NumPy noise."""
    size = hq.shape[1], hq.shape[0]
    image = hq.astype(np.float32) / 255
    for operation in drawn.operations:
        image = _numpy_step(operation, image, drawn.scale, size)
    return np.clip(image, 0, 1)


def _numpy_step(
    operation: OperationParams, image: np.ndarray, scale: float, size: tuple[int, int]
) -> np.ndarray:
    match operation:
        case BlurParams() | SincParams():
            kernel = operation.kernel().astype(np.float32)
            return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        case DownscaleParams():
            mode = _CV2_MODES[operation.mode]
            return cv2.resize(image, small_size(size, scale), interpolation=mode)
        case ResizeParams():
            target = _resize_target(operation, scale, size)
            return cv2.resize(image, target, interpolation=_CV2_MODES[operation.mode])
        case ResizeBackParams():
            image = np.round(np.clip(image, 0, 1) * 255) / np.float32(255)
            return cv2.resize(image, size, interpolation=_CV2_MODES[operation.mode])
        case MaskParams():
            return image * kept_pixels(
                image.shape[:2], lost=operation.fraction, seed=operation.seed
            )
        case GaussianNoiseParams():
            rng = np.random.RandomState(operation.seed)
            shape = (*image.shape[:2], 1) if operation.gray else image.shape
            noise = rng.standard_normal(shape).astype(np.float32) * operation.sigma / 255
            return np.clip(image + noise, 0, 1)
        case PoissonNoiseParams():
            return np.clip(image + _numpy_poisson(operation, image), 0, 1)
        case JpegParams():
            pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)[..., ::-1]
            options = [cv2.IMWRITE_JPEG_QUALITY, operation.quality]
            data = cv2.imencode(".jpg", pixels, options)[1]
            return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255
    return image


def _resize_target(resize: ResizeParams, scale: float, size: tuple[int, int]) -> tuple[int, int]:
    base = 1.0 if resize.relative_to == "hq" else scale
    width, height = (max(1, round(side * resize.factor / base)) for side in size)
    return width, height


def _numpy_poisson(operation: PoissonNoiseParams, image: np.ndarray) -> np.ndarray:
    base = (image @ _LUMA)[..., None] if operation.gray else image
    rounded = np.clip((base * 255).round(), 0, 255) / 255
    vals = 2 ** np.ceil(np.log2(len(np.unique(rounded))))
    counts = np.random.RandomState(operation.seed).poisson(rounded * vals)
    return ((counts / vals - rounded) * operation.scale).astype(np.float32)


def degrade_torch(hq: np.ndarray, drawn: DegradationParams) -> np.ndarray:
    """The same with torch: grouped convolution, `interpolate`, a differentiable JPEG."""
    image = torch.from_numpy(hq).permute(2, 0, 1)[None].float() / 255
    size = hq.shape[1], hq.shape[0]
    for operation in drawn.operations:
        image = _torch_step(operation, image, drawn.scale, size)
    return image.clamp(0, 1)[0].permute(1, 2, 0).numpy()


def _torch_step(
    operation: OperationParams, image: Tensor, scale: float, size: tuple[int, int]
) -> Tensor:
    match operation:
        case BlurParams() | SincParams():
            kernel = torch.from_numpy(operation.kernel().astype(np.float32))
            half = kernel.shape[0] // 2
            padded = F.pad(image, (half,) * 4, mode="reflect")
            return F.conv2d(padded.transpose(0, 1), kernel[None, None]).transpose(0, 1)
        case DownscaleParams():
            return _torch_resize(image, small_size(size, scale), operation.mode)
        case ResizeParams():
            return _torch_resize(image, _resize_target(operation, scale, size), operation.mode)
        case ResizeBackParams():
            image = (image.clamp(0, 1) * 255).round() / 255
            return _torch_resize(image, size, operation.mode)
        case MaskParams():
            kept = kept_pixels(size[::-1], lost=operation.fraction, seed=operation.seed)
            return image * torch.from_numpy(kept).permute(2, 0, 1)
        case GaussianNoiseParams():
            torch.manual_seed(operation.seed)
            noise = torch.randn_like(image[:, :1] if operation.gray else image)
            return (image + noise * operation.sigma / 255).clamp(0, 1)
        case PoissonNoiseParams():
            return (image + _torch_poisson(operation, image)).clamp(0, 1)
        case JpegParams():
            return differentiable_jpeg(image.clamp(0, 1), operation.quality)
    return image


def _torch_resize(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if mode in ("nearest", "area"):
        name = "nearest-exact" if mode == "nearest" else mode
        return F.interpolate(image, size=size[::-1], mode=name)
    return F.interpolate(image, size=size[::-1], mode=mode, align_corners=False)


def _torch_poisson(operation: PoissonNoiseParams, image: Tensor) -> Tensor:
    base = image
    if operation.gray:
        base = (image * torch.from_numpy(_LUMA)[:, None, None]).sum(1, keepdim=True)
    rounded = (base * 255).round().clamp(0, 255) / 255
    vals = 2 ** np.ceil(np.log2(len(torch.unique(rounded))))
    torch.manual_seed(operation.seed)
    return (torch.poisson(rounded * vals) / vals - rounded) * operation.scale


# Annex K of ITU-T T.81: quantization of luma and chroma at quality 50.
_LUMA_TABLE = torch.tensor(
    [[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
     [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
     [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
     [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]]
).float()  # fmt: skip
_CHROMA_TABLE = torch.full((8, 8), 99.0)
_CHROMA_TABLE[:4, :4] = torch.tensor(
    [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
).float()
_YCBCR = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
_ANGLES = (2 * torch.arange(8)[None, :] + 1) * torch.arange(8)[:, None] * torch.pi / 16
_DCT = torch.cos(_ANGLES) * torch.tensor([8**-0.5] + [0.5] * 7)[:, None]


def differentiable_jpeg(image: Tensor, quality: int) -> Tensor:
    """JPEG with 4:2:0 chroma whose rounding x + (x - round x)^3 has a gradient; (B, 3, H, W)."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycbcr = torch.einsum("ij,bjhw->bihw", _YCBCR, padded * 255)
    factor = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    luma = _quantized(ycbcr[:, :1] - 128, _LUMA_TABLE * factor) + 128
    chroma = _quantized(F.avg_pool2d(ycbcr[:, 1:], 2), _CHROMA_TABLE * factor)
    chroma = F.interpolate(chroma, scale_factor=2, mode="nearest")
    back = torch.cat([luma, chroma], dim=1)
    rgb = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_YCBCR), back)
    return (rgb / 255).clamp(0, 1)[..., :height, :width]


def _quantized(planes: Tensor, table: Tensor) -> Tensor:
    batch, channels, height, width = planes.shape
    blocks = planes.reshape(batch, channels, height // 8, 8, width // 8, 8)
    coefficients = torch.einsum("vy,ux,bcryqx->bcrqvu", _DCT, _DCT, blocks) / table
    rounded = coefficients.round()
    restored = (rounded + (coefficients - rounded) ** 3) * table
    spatial = torch.einsum("vy,ux,bcrqvu->bcryqx", _DCT, _DCT, restored)
    return spatial.reshape(batch, channels, height, width)
