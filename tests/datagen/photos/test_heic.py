"""HEIC is read where pillow-heif is installed, and named where it is not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datagen.build.in_process import build_in_process
from datagen.photos.decode import ImageRejected, decode_photo, read_header
from datagen.settings import DatasetRecipe, FilterSettings, ImageSettings
from tests.support.picture_files import saved, turned

PLAIN = ImageSettings()
START = b"\0\0\0\x18ftypheic" + bytes(60)


def _reason(data: bytes, **images: Any) -> str:
    with pytest.raises(ImageRejected) as error:
        decode_photo(data, ImageSettings(**images))
    return error.value.reason


def test_without_the_extra_a_heic_of_any_name_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("datagen.photos.decode._FORMATS", ("JPEG", "PNG"))
    assert _reason(START) == "heic without pillow-heif"
    with pytest.raises(ImageRejected, match="^heic without pillow-heif$"):
        read_header(START, size=10_000, images=PLAIN, filters=FilterSettings())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_of_a_phone_is_read_upright(photo: Any, orientation: int) -> None:
    pytest.importorskip("pillow_heif")
    options: dict[str, Any] = {"quality": 95, "chroma": 444}
    lying = photo(3, width=96, height=64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Of bytes pillow-heif makes HEIC's own marks and leaves them in EXIF too, as phones do.
    data = saved(Image.fromarray(lying), "HEIF", exif=exif.tobytes(), **options)
    expected = decode_photo(turned(lying, orientation, "PNG"), PLAIN)
    found = decode_photo(data, PLAIN)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 3
    size = read_header(data, size=len(data), images=PLAIN, filters=FilterSettings())
    assert size == (found.shape[1], found.shape[0])


def test_odd_heic_files_end_well(photo: Any) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = Image.fromarray(photo(4))
    whole = saved(picture, "HEIF")
    assert _reason(whole[: len(whole) // 2]) in ("truncated", "corrupt")
    clear = Image.fromarray(np.dstack([photo(4), np.full((80, 96), 9, np.uint8)]))
    assert _reason(saved(clear, "HEIF")) == "transparent"
    burst = saved(picture, "HEIF", save_all=True, append_images=[Image.fromarray(255 - photo(4))])
    assert np.array_equal(decode_photo(burst, PLAIN), decode_photo(whole, PLAIN))
    stream = io.BytesIO()
    levels = photo(4).astype("<u2") * 257
    deep = pillow_heif.from_bytes(mode="RGB;16", size=picture.size, data=levels.tobytes())
    deep.save(stream, quality=95, chroma=444)
    assert _reason(stream.getvalue(), sixteen_bit="reject") == "16 bit"
    assert np.abs(decode_photo(stream.getvalue(), PLAIN).astype(int) - photo(4)).mean() < 3


def test_a_folder_of_heic_becomes_a_dataset(
    recipe: Callable[..., DatasetRecipe], photos: Path, photo: Any
) -> None:
    pytest.importorskip("pillow_heif")
    for name in ("a.HEIC", "b.heif", "c.jpg"):
        (photos / name).write_bytes(saved(Image.fromarray(photo(ord(name[0]))), "HEIF"))
    assert build_in_process(recipe()).num_samples == 2 * (9 + 3)
