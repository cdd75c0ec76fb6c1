"""Pictures in memory as programs have them, NumPy arrays and Pillow's images, to ours and back."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from datagen.errors import FlowmapsrError
from datagen.photos.color import UnsupportedPixels, strips
from training.inference.pictures.decode import Picture
from training.inference.pictures.metadata import Metadata

Form = TypeVar("Form", np.ndarray, Image.Image)
"""An array is uint8 or uint16 in sRGB: gray (H, W), RGB (H, W, 3), or with alpha (H, W, 4)."""


def picture_of(image: np.ndarray | Image.Image) -> Picture:
    """A picture of 8 bits, or of 16 where it has them; of an image upright and in sRGB.

    Raises:
        FlowmapsrError: an array of another type or shape, or an image of another mode.
    """
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Image.Image):
        return _of_image(image)
    raise FlowmapsrError(
        f"a picture is an array or an image of Pillow, not {type(image).__name__}; upscale_file "
        "takes names of files"
    )


def in_form_of(picture: Picture, given: Form) -> Form:
    """The picture as an array or an image, like the one that was given."""
    pixels = picture.rgb[..., 0] if picture.gray else picture.rgb
    if isinstance(given, np.ndarray):
        if picture.alpha is None:
            return pixels
        return np.dstack([pixels, picture.alpha])
    image = Image.fromarray(pixels)
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    return image


def _of_array(image: np.ndarray) -> Picture:
    if image.dtype not in (np.uint8, np.uint16):
        raise FlowmapsrError(
            f"an array of {image.dtype}: give levels of uint8 or uint16, of values in [0, 1] "
            "(255 * image).round().astype(np.uint8)"
        )
    shape = image.shape
    if image.size == 0 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        raise FlowmapsrError(
            f"an array of the shape {shape}: give (height, width) of gray, (height, width, 3) of "
            "RGB, or (height, width, 4) with alpha"
        )
    if len(shape) == 2:
        return Picture(np.repeat(image[..., None], 3, axis=2), None, True, Metadata())
    alpha = np.ascontiguousarray(image[..., 3]) if shape[2] == 4 else None
    return Picture(np.ascontiguousarray(image[..., :3]), alpha, False, Metadata())


def _of_image(image: Image.Image) -> Picture:
    if image.mode == "I;16":
        return _of_array(np.asarray(image))
    image = ImageOps.exif_transpose(image)
    try:
        parts = [(colors, alpha) for _, colors, alpha in strips(image)]
    except (UnsupportedPixels, ValueError, OSError) as error:
        raise FlowmapsrError(
            f"an image of the mode {image.mode} cannot be used ({error}); convert it to RGB"
        ) from error
    rgb = np.concatenate([colors for colors, _ in parts])
    alpha = np.concatenate([one for _, one in parts if one is not None] or [rgb[:0, :, 0]])
    gray = image.mode in ("1", "L", "LA", "La", "I")
    return Picture(rgb, alpha if alpha.size else None, gray, Metadata())
