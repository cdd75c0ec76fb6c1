"""A photo and a scale to a larger photo: `Upscaler.from_pretrained(folder).upscale(image, scale=4,
steps=2)`.

The whole path of inference in one place: bicubic to the target size, encode, a few steps, decode.
    Alpha, grey and orientation are kept sensibly. Knows no dataset and no training.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from datagen.errors import FlowmapsrError
from datagen.photos.decode import decode_image
from datagen.samples.codecs import Codec
from training.flowmap.network import FlowMapNet
from training.flowmap.sampler import sample
from training.tracking.grids import to_pixels
from training.weights.model_folder import (
    ModelConfig,
    find_model,
    load_config,
    load_matching_codec,
    load_net,
)


class Upscaler:
    """A trained model ready to enlarge pictures."""

    def __init__(self, net: FlowMapNet, codec: Codec, config: ModelConfig) -> None:
        self.net = net
        self.codec = codec
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        lora_scale: float | None = None,
        guidance: float | None = None,
    ) -> Upscaler:
        """Loads a model folder, or the last finished stage of a run folder.

        Args:
            lora_scale: strength of an adversarial stage's LoRA; the model's own when None.
            guidance: guidance strength w; the model's own when None.
            device: torch device; the first GPU where there is one, else the CPU.

        Raises:
            FlowmapsrError: no model there, another format version, weights that do not fit,
                a `lora_scale` for a model without LoRA, or a `guidance` for one that takes none.
        """
        folder = find_model(path)
        config = load_config(folder)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        net = load_net(folder, config, place, lora_scale=lora_scale)
        if guidance is not None:
            if not config.model.guidance_conditioning:
                raise FlowmapsrError(
                    f"the model in {folder} does not take the guidance strength as an input, so "
                    "there is none to choose: leave it out, or train with "
                    "model.guidance_conditioning=true"
                )
            net.strength = guidance
        return cls(net, load_matching_codec(config, place), config)

    def upscale(self, image: np.ndarray, *, scale: float, steps: int) -> np.ndarray:
        """RGB uint8 (h, w, 3) -> RGB uint8 (round(h * scale), round(w * scale), 3).

        Args:
            scale: enlargement, 1 or more, not necessarily whole.
            steps: network evaluations, 1 or more.
        """
        height, width = image.shape[:2]
        return self.restore(bicubic(image, enlarged((width, height), scale)), steps=steps)

    @torch.inference_mode()
    def restore(self, image: np.ndarray, *, steps: int) -> np.ndarray:
        """An LQ image already at its target size, RGB uint8 (H, W, 3) -> its HQ estimate."""
        height, width = image.shape[:2]
        device = next(self.net.parameters()).device
        pixels = (
            torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
        )
        padded = _pad_to_multiple(pixels, self.codec.downsample * self.net.downsample)
        restored = self.codec.decode(sample(self.net, self.codec.encode(padded), steps))
        return to_pixels(restored)[0, :, :height, :width].permute(1, 2, 0).cpu().numpy()

    def upscale_file(self, data: bytes, *, scale: float, steps: int) -> Image.Image:
        """An image file's bytes to an enlarged picture: upright, grey stays grey, alpha is kept.

        Raises:
            FlowmapsrError: the bytes are no picture, or it is too large for this machine's memory.
        """
        decoded = decode_image(data)
        try:
            rgb = self.upscale(decoded.rgb, scale=scale, steps=steps)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            height, width = decoded.rgb.shape[:2]
            raise FlowmapsrError(
                f"{width}x{height} at scale {scale:g} does not fit into memory; use a smaller "
                "scale or cut "
                "the picture"
            ) from error
        picture = Image.fromarray(rgb)
        if (decoded.rgb == decoded.rgb[..., :1]).all():
            picture = picture.convert("L")
        if decoded.alpha is not None:
            size = (rgb.shape[1], rgb.shape[0])
            picture.putalpha(Image.fromarray(bicubic(decoded.alpha, size)))
        return picture


def enlarged(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) times the scale, rounded, at least one pixel."""
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w[, 3]) resized to (width, height): the model's input, and the baseline."""
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def _pad_to_multiple(pixels: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeats the last rows and columns of (B, 3, H, W) until both sides are multiples."""
    height, width = pixels.shape[-2:]
    return functional.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def _out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator says so only in the text of a RuntimeError.
    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    )
