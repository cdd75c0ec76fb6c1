"""A photo and a scale to a larger one: `Upscaler.from_pretrained(folder).upscale(image, scale=4,
steps=2)`.

Resizes to the target size as in training and lets the model restore the pixels. Alpha, gray and
orientation are kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
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
from training.inference.color import ColorFix, fix_colors
from training.inference.picture import (
    Picture,
    colors_everywhere,
    enlarged_size,
    read_picture,
)
from training.inference.tiler import Tiler
from training.monitoring.memory import is_out_of_memory
from training.settings.evaluation import Precision
from training.system_protocol import LoadOptions, Restorer, SystemOf
from training.systems import system_of as default_system_of
from training.weights.model_folder import find_model, model_kind

_ALL_NOISE = 20
"""Least sigma, levels, of noise whose coarse part is seen in flat regions."""

_BYTES_PER_PIXEL = 60
"""Of a result: what is held of it at once beside the work of the network (measured: 52 to 57)."""


class Upscaler:
    """A trained model ready to enlarge pictures."""

    def __init__(
        self,
        restorer: Restorer,
        *,
        method: str,
        tiler: Tiler | None = None,
        folder: Path | None = None,
        options: LoadOptions | None = None,
    ) -> None:
        self.restorer = restorer
        self.tiler = tiler or Tiler()
        self._folder, self._options = folder, options
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
        return cls(
            system.load(folder, place, options),
            method=system.name,
            tiler=tiler,
            folder=folder,
            options=options,
        )

    def digest(self) -> str:
        """Of the files of the model and of how it was loaded, by SHA-256."""
        assert self._folder is not None and self._options is not None, "of a loaded model only"
        total = hashlib.sha256(repr(replace(self._options, max_memory=None)).encode())
        for path in sorted(self._folder.iterdir()):
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def upscale(
        self,
        image: np.ndarray,
        *,
        scale: float,
        steps: int | None = None,
        color_fix: ColorFix | None = None,
        color_strength: float = 1.0,
    ) -> np.ndarray:
        """RGB uint8 or uint16 (h, w, 3) -> (round(h * scale), round(w * scale), 3), for any scale
        from 1 on, by `steps` network evaluations; None takes those that suit the model. The
        result gets the colors of the image as `fix_colors` says, by what suits the model when None.
        """
        lq = self.enlarge(image, enlarged_size(image, scale))
        fixed = fix_colors(  # holds the one copy of either picture
            self._restored(lq, steps),
            np.divide(lq, _top(lq), dtype=np.float32),
            color_fix or self.usual_color_fix,
            scale=scale,
            strength=color_strength,
        )
        return _levels(fixed, image.dtype)

    def enlarge(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """RGB uint8 or uint16 (h, w, 3) at (width, height), resized as the model's LQ was in
        training."""
        if self._mode == "bicubic":
            return bicubic(image, size)
        result = resized(image.astype(np.float32), size, self._mode)
        return result.round().clip(0, _top(image)).astype(image.dtype)

    def restore(self, image: np.ndarray, *, steps: int | None = None) -> np.ndarray:
        """An LQ image already at its target size, RGB uint8 or uint16 (H, W, 3) -> its HQ estimate,
        whose colors are the network's."""
        return _levels(self._restored(image, steps), image.dtype)

    @torch.inference_mode()
    def _restored(self, image: np.ndarray, steps: int | None) -> np.ndarray:
        """RGB uint8 or uint16 (H, W, 3) -> float32 in [0, 1]."""
        height, width = image.shape[:2]
        margin, multiple = self.restorer.margin, self.restorer.size_multiple
        around = [
            (margin, margin + -(length + 2 * margin) % multiple) for length in (height, width)
        ]
        padded = np.pad(image, [*around, (0, 0)], mode="reflect" if margin else "edge")
        tensor = torch.from_numpy(padded).to(self.restorer.device)
        pixels = tensor.permute(2, 0, 1)[None].float().div_(_top(image) / 2).sub_(1)
        steps = steps or self.restorer.usual_steps
        restored = self.restorer(pixels, steps=steps, in_tiles=self.tiler)
        inside = restored[0, :, margin : margin + height, margin : margin + width].float()
        if not inside.isfinite().all():
            raise FlowmapsrError(
                "the model gives values that are not finite: use --precision fp32, or another "
                "model where that is used already"
            )
        shares = inside.add(1).div_(2).clamp_(0, 1)
        return shares.permute(1, 2, 0).contiguous().cpu().numpy()

    def upscale_picture(
        self,
        picture: Picture,
        *,
        scale: float,
        steps: int | None = None,
        color_fix: ColorFix | None = None,
        color_strength: float = 1.0,
    ) -> Picture:
        """As `upscale`; gray stays gray but where the model makes colors, and transparency is
        enlarged by bicubic interpolation.

        Raises:
            FlowmapsrError: it is too large for this machine's memory.
        """
        size = enlarged_size(picture.rgb, scale)
        colors, alpha = picture.rgb, picture.alpha
        try:
            if size[0] * size[1] * _BYTES_PER_PIXEL > psutil.virtual_memory().available:
                raise MemoryError
            if alpha is not None:
                colors = colors_everywhere(colors, alpha)
                alpha = bicubic(alpha, size)
            rgb = self.upscale(
                colors,
                scale=scale,
                steps=steps,
                color_fix=color_fix,
                color_strength=color_strength,
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = colors.shape[:2]
            raise FlowmapsrError(
                f"{width}x{height} at scale {scale:g} does not fit into memory; use a smaller "
                "scale or cut the picture"
            ) from error
        gray = picture.gray and self.usual_color_fix != "off"
        if gray:
            rgb = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return replace(picture, rgb=rgb, alpha=alpha, gray=gray)

    def upscale_file(
        self,
        data: bytes,
        *,
        scale: float,
        steps: int | None = None,
        color_fix: ColorFix | None = None,
        color_strength: float = 1.0,
    ) -> Image.Image:
        """An image file's bytes to an enlarged picture of 8 bits in sRGB: upright, gray stays gray,
        transparency is kept.

        Raises:
            FlowmapsrError: the bytes are no picture, or it is too large for this machine's memory.
        """
        result = self.upscale_picture(
            read_picture(data, deep=False),
            scale=scale,
            steps=steps,
            color_fix=color_fix,
            color_strength=color_strength,
        )
        picture = Image.fromarray(result.rgb[..., 0] if result.gray else result.rgb)
        if result.alpha is not None:
            picture.putalpha(Image.fromarray(result.alpha))
        return picture


def _top(image: np.ndarray) -> int:
    return int(np.iinfo(image.dtype).max)


def _levels(picture: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float in [0, 1], and somewhat beyond, to the nearest levels of uint8 or uint16."""
    top = np.iinfo(dtype).max
    levels = top * picture
    np.rint(levels, out=levels)
    return np.clip(levels, 0, top, out=levels).astype(dtype)


def bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 or uint16 (h, w[, 3]) at (width, height): the baseline, and most models' input."""
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
