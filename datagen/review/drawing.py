"""The colours, letters and file form that the pictures of a dataset share. Equal pictures give
equal bytes: the letters come with Pillow, and the files hold no times.
"""

from __future__ import annotations

import io

from PIL import Image, ImageFont

PAPER = (250, 249, 246)
PANEL = (255, 255, 255)
INK = (34, 36, 42)
FAINT = (112, 114, 122)
LINE = (226, 224, 218)
BLUE = (58, 110, 165)
ORANGE = (206, 120, 52)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def letters(size: int) -> Font:
    """Pillow's own letters, `size` pixels high."""
    return ImageFont.load_default(size)


def png_bytes(page: Image.Image) -> bytes:
    encoded = io.BytesIO()
    page.save(encoded, format="PNG", optimize=True)
    return encoded.getvalue()
