"""A photo and a scale to a larger one: `Upscaler.from_pretrained(folder).upscale(image, scale=4,
steps=2)`.

Resizes to the target size as in training and lets the model restore the pixels. Alpha, gray and
orientation are kept.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from datagen.degradation.resample import resized
from datagen.degradation.settings import (
    Box,
    DegradationSettings,
    Grey,
    Interpolation,
    Mask,
    Noise,
    ResizeBack,
    paths,
)
from datagen.errors import FlowmapsrError
from datagen.photos.decode import decode_image
from training.inference.color import ColorFix, fix_colors
from training.inference.memory import is_out_of_memory
from training.inference.tiler import Tiler
from training.settings.evaluation import Precision
from training.system_protocol import LoadOptions, Restorer, SystemOf
from training.systems import system_of as default_system_of
from training.weights.model_folder import find_model, model_kind

_ALL_NOISE = 20
"""Least sigma, levels, of noise whose coarse part is seen in flat regions."""


class Upscaler:
    """A trained model ready to enlarge pictures."""

    def __init__(self, restorer: Restorer, *, method: str, tiler: Tiler | None = None) -> None:
        self.restorer = restorer
        self.tiler = tiler or Tiler()
        self.method = method
        """The system's name, for tables of results."""
        self.config = restorer.config
        self._mode = trained_resize(self.config.degradation)
        self.usual_color_fix = usual_color_fix(self.config.degradation)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        lora_scale: float | None = None,
        guidance: float | None = None,
        precision: Precision = "auto",
        seed: int = 0,
        tile: int | None = None,
        max_memory: int | None = None,
        system_of: SystemOf = default_system_of,
    ) -> Upscaler:
        """Loads a model folder, or the last finished stage of a run folder.

        Args:
            device: torch device; the first GPU where there is one, else the CPU.
            lora_scale: strength of an adversarial stage's LoRA; the model's own when None.
            guidance: guidance strength w; the model's own when None.
            precision: of the network; `auto` is bf16 on a GPU that computes in it, else fp32.
            seed: of the noise that a model may restore with, the same for every picture.
            tile: side of the tiles of large pictures, pixels; the largest that fits into memory
                when None, and none where the picture fits.
            max_memory: what this process may hold on the device, bytes; most of what is free when
                None.

        Raises:
            FlowmapsrError: no model there, another format version, weights that do not fit, or a
                strength that the model does not have.
        """
        folder = find_model(path)
        system = system_of(model_kind(folder))
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        options = LoadOptions(lora_scale, guidance, precision, seed, tile, max_memory)
        tiler = Tiler(tile=tile, max_memory=max_memory)
        return cls(system.load(folder, place, options), method=system.name, tiler=tiler)

    def upscale(
        self,
        image: np.ndarray,
        *,
        scale: float,
        steps: int | None = None,
        color_fix: ColorFix | None = None,
        color_strength: float = 1.0,
    ) -> np.ndarray:
        """RGB uint8 (h, w, 3) -> RGB uint8 (round(h * scale), round(w * scale), 3), for any scale
        from 1 on, by `steps` network evaluations; None takes those that suit the model. The result
        gets the colors of the image as `fix_colors` says, by what suits the model when None."""
        height, width = image.shape[:2]
        target = (max(1, round(width * scale)), max(1, round(height * scale)))
        lq = self.enlarge(image, target)
        restored = self._restored(lq, steps)
        how = color_fix or self.usual_color_fix
        reference = lq.astype(np.float32) / 255
        return _levels(fix_colors(restored, reference, how, scale=scale, strength=color_strength))

    def enlarge(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """RGB uint8 (h, w, 3) at (width, height), resized as the model's LQ was in training."""
        if self._mode == "bicubic":
            return bicubic(image, size)
        result = resized(image.astype(np.float32), size, self._mode)
        return result.round().clip(0, 255).astype(np.uint8)

    def restore(self, image: np.ndarray, *, steps: int | None = None) -> np.ndarray:
        """An LQ image already at its target size, RGB uint8 (H, W, 3) -> its HQ estimate, whose
        colors are the network's."""
        return _levels(self._restored(image, steps))

    @torch.inference_mode()
    def _restored(self, image: np.ndarray, steps: int | None) -> np.ndarray:
        """RGB uint8 (H, W, 3) -> float32 in [0, 1]."""
        height, width = image.shape[:2]
        margin, multiple = self.restorer.margin, self.restorer.size_multiple
        around = [
            (margin, margin + -(length + 2 * margin) % multiple) for length in (height, width)
        ]
        padded = np.pad(image, [*around, (0, 0)], mode="reflect" if margin else "edge")
        tensor = torch.from_numpy(padded).to(self.restorer.device)
        pixels = tensor.permute(2, 0, 1)[None].float() / 127.5 - 1
        steps = steps or self.restorer.usual_steps
        restored = self.restorer(pixels, steps=steps, in_tiles=self.tiler)
        inside = restored[0, :, margin : margin + height, margin : margin + width]
        return ((inside.float() + 1) / 2).clamp(0, 1).permute(1, 2, 0).contiguous().cpu().numpy()

    def upscale_file(
        self,
        data: bytes,
        *,
        scale: float,
        steps: int | None = None,
        color_fix: ColorFix | None = None,
        color_strength: float = 1.0,
    ) -> Image.Image:
        """An image file's bytes to an enlarged picture: upright, gray stays gray, alpha is kept.

        Raises:
            FlowmapsrError: the bytes are no picture, or it is too large for this machine's memory.
        """
        decoded = decode_image(data)
        try:
            rgb = self.upscale(
                decoded.rgb,
                scale=scale,
                steps=steps,
                color_fix=color_fix,
                color_strength=color_strength,
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = decoded.rgb.shape[:2]
            raise FlowmapsrError(
                f"{width}x{height} at scale {scale:g} does not fit into memory; use a smaller "
                "scale or cut the picture"
            ) from error
        picture = Image.fromarray(rgb)
        if self.usual_color_fix != "off" and (decoded.rgb == decoded.rgb[..., :1]).all():
            picture = picture.convert("L")
        if decoded.alpha is not None:
            picture.putalpha(Image.fromarray(bicubic(decoded.alpha, picture.size)))
        return picture


def _levels(picture: np.ndarray) -> np.ndarray:
    """Float in [0, 1], and somewhat beyond, to the nearest of uint8."""
    return (255 * picture).round().clip(0, 255).astype(np.uint8)


def bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w[, 3]) resized to (width, height): the baseline, and most models' input."""
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def trained_resize(degradation: DegradationSettings) -> Interpolation:
    """How the LQ came to the size of the HQ in training. Of a mixture bicubic, which keeps most of
    the picture, else the first one."""
    modes = [
        mode
        for path in paths(degradation.operations)
        for operation in path
        if isinstance(operation, ResizeBack)
        for mode in operation.modes
    ]
    return "bicubic" if "bicubic" in modes else modes[0]


def usual_color_fix(degradation: DegradationSettings) -> ColorFix:
    """`off` where the model learned to make colors: its LQ was gray, in parts, or all noise."""
    made = any(
        isinstance(operation, Grey | Mask | Box)
        or (isinstance(operation, Noise) and operation.gaussian_sigma[0] >= _ALL_NOISE)
        for path in paths(degradation.operations)
        for operation in path
    )
    return "off" if made else "wavelet"
