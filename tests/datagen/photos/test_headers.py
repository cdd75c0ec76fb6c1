"""What the first bytes of an image file decide, and when more of them are needed."""

from __future__ import annotations

import io
import struct
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from datagen.photos.decode import HeaderIncomplete, ImageRejected, decode_photo, read_header
from datagen.settings import FilterSettings, ImageSettings
from tests.support.picture_files import (
    animation,
    png_bomb,
    saved,
    sixteen_bit_png,
    sixteen_bit_tiff,
    turned,
    with_segments,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HEAD = 64 * 1024


def size_of(
    head: bytes, *, complete: bool = True, filters: dict[str, Any] | None = None, **images: Any
) -> tuple[int, int]:
    return read_header(
        head,
        size=len(head) if complete else len(head) + 1,
        images=ImageSettings(**images),
        filters=FilterSettings(**(filters or {})),
    )


def reason(head: bytes, **options: Any) -> str:
    with pytest.raises(ImageRejected) as error:
        size_of(head, **options)
    return error.value.reason


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Noise: its files are larger than a head."""
    return np.random.default_rng(1).integers(0, 256, (200, 260, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _no_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ImageFile.ImageFile.load

    def load(self: ImageFile.ImageFile) -> Any:
        callers = [frame.name for frame in traceback.extract_stack()]
        assert "read_header" not in callers, "a header decoded pixels"
        return real(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF"])
def test_the_size_is_read_from_the_head_alone(pixels: np.ndarray, format: str) -> None:
    data = saved(Image.fromarray(pixels), format, **({"quality": 95} if format == "JPEG" else {}))
    assert size_of(data) == (260, 200)
    assert size_of(data[:20_000], complete=False) == (260, 200)


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_of_every_kind_of_webp_is_read(
    pixels: np.ndarray, mode: str, lossless: bool
) -> None:
    image = Image.fromarray(pixels).convert(mode)
    data = saved(image, "WEBP", lossless=lossless)
    profiled = saved(image, "WEBP", lossless=lossless, icc_profile=b"x" * 100)
    for file in (data, profiled):
        assert size_of(file[:1000], complete=False) == size_of(file) == (260, 200)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_photo(
    pixels: np.ndarray, format: str, orientation: int
) -> None:
    data = turned(pixels, orientation, format)
    height, width = decode_photo(data, ImageSettings()).shape[:2]
    assert size_of(data) == (width, height)
    assert (width < height) == (orientation >= 5)
    for length in (100, 1000, 20_000):
        try:
            found = size_of(data[:length], complete=False)
        except HeaderIncomplete:
            continue
        assert found == (width, height), f"{length} bytes gave a wrong answer"


def test_every_prefix_gives_the_size_or_is_incomplete(pixels: np.ndarray) -> None:
    small = np.ascontiguousarray(pixels[:12, :20])
    files = [turned(small, 6, format) for format in ("JPEG", "PNG", "WEBP", "TIFF")] + [
        saved(Image.fromarray(small), "GIF"),
        saved(Image.fromarray(small).quantize(8), "PNG", transparency=1),
        sixteen_bit_tiff(small.astype(np.uint16)),
        sixteen_bit_png(small.astype(np.uint16)),
    ]
    for data in files:
        images = {"sixteen_bit": "reject"}
        whole = _outcome(data, complete=True, images=images)
        prefixes = [_outcome(data[:n], complete=False, images=images) for n in range(len(data))]
        assert set(prefixes) <= {whole, "more"}
        assert prefixes[0] == "more"


def _outcome(head: bytes, *, complete: bool, images: dict[str, Any]) -> Any:
    try:
        return size_of(head, complete=complete, **images)
    except HeaderIncomplete:
        return "more"
    except ImageRejected as error:
        return error.reason


def test_a_large_profile_before_the_frame_header_needs_more_bytes(pixels: np.ndarray) -> None:
    data = with_segments(saved(Image.fromarray(pixels), "JPEG"), 200_000)
    with pytest.raises(HeaderIncomplete):
        size_of(data[:HEAD], complete=False)
    assert size_of(data[: 4 * HEAD], complete=False) == (260, 200)
    assert reason(data[:HEAD]) == "truncated"


def test_a_tiff_with_its_directory_at_the_end_needs_all_bytes(pixels: np.ndarray) -> None:
    data = sixteen_bit_tiff(pixels.astype(np.uint16))
    if struct.unpack("<I", data[4:8])[0] < HEAD:  # move the directory behind the pixels
        data = saved(Image.fromarray(pixels), "TIFF", compression="tiff_deflate")
    assert struct.unpack("<I", data[4:8])[0] > HEAD
    with pytest.raises(HeaderIncomplete):
        size_of(data[:HEAD], complete=False)
    assert size_of(data) == (260, 200)


def test_kinds_are_rejected_by_the_header(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    files: dict[str, tuple[bytes, dict[str, Any]]] = {
        "animated": (animation(pixels, "PNG"), {}),
        "gray": (saved(image.convert("L"), "JPEG"), {"gray": "reject"}),
        "cmyk": (saved(image.convert("CMYK"), "JPEG"), {"cmyk": "reject"}),
        "16 bit": (sixteen_bit_png(pixels.astype(np.uint16)), {"sixteen_bit": "reject"}),
        "too large": (png_bomb(), {}),
        "not an image": (b"Dear friend, " * 9000, {}),
    }
    for expected, (data, images) in files.items():
        assert reason(data[:HEAD], complete=False, **images) == expected
        assert reason(data, **images) == expected
    assert size_of(files["gray"][0]) == size_of(files["cmyk"][0]) == (260, 200)


def test_animations_beyond_the_head_are_found_by_the_decoder(pixels: np.ndarray) -> None:
    data = animation(pixels, "GIF")
    assert size_of(data[:2000], complete=False) == (260, 200)
    assert reason(data) == "animated"
    webp = animation(pixels, "WEBP")
    assert reason(webp[:100], complete=False) == "animated"
    assert size_of(webp, animated="first_frame") == (260, 200)


def test_files_that_end_early_are_empty_or_truncated() -> None:
    assert reason(b"") == "empty file"
    with pytest.raises(HeaderIncomplete):
        size_of(b"", complete=False)
    one = saved(Image.new("RGB", (1, 1)))
    assert size_of(one) == (1, 1)
    assert reason(one[:20]) == "truncated"


def test_filters_are_applied_to_the_header(pixels: np.ndarray) -> None:
    data = saved(Image.fromarray(pixels))
    assert reason(data, filters={"min_side": 201}) == "below min_side"
    assert size_of(data, filters={"min_side": 200}) == (260, 200)
    assert reason(data, filters={"max_aspect_ratio": 1.29}) == "aspect ratio"
    assert size_of(data, filters={"max_aspect_ratio": 1.3}) == (260, 200)
    assert size_of(data, filters={"min_jpeg_quality": 100}) == (260, 200), "it is no JPEG"


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_jpeg_quality_is_the_one_it_was_saved_with(options: dict[str, Any]) -> None:
    image = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    for quality in range(1, 101):
        data = saved(image, "JPEG", quality=quality, **options)
        assert size_of(data, filters={"min_jpeg_quality": quality}) == (16, 16)
        if quality < 100:
            assert reason(data, filters={"min_jpeg_quality": quality + 1}) == "jpeg quality"


def test_jpeg_quality_is_estimated_from_a_cameras_tables() -> None:
    """Tables of a camera: quality 80 with each divisor off by up to one."""
    image = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    tables = Image.open(io.BytesIO(saved(image, "JPEG", quality=80))).quantization
    rng = np.random.default_rng(0)
    odd = [[max(1, int(v + rng.integers(-1, 2))) for v in tables[n]] for n in (0, 1)]
    data = saved(image, "JPEG", qtables=odd)
    assert size_of(data, filters={"min_jpeg_quality": 77}) == (16, 16)
    assert reason(data, filters={"min_jpeg_quality": 84}) == "jpeg quality"


REASONS = {
    "not an image", "truncated", "corrupt", "too large", "animated", "unsupported pixel format",
    "transparent",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM"])
def test_no_broken_file_gives_a_traceback(photo: Callable[..., np.ndarray], format: str) -> None:
    whole = saved(Image.fromarray(photo(1, width=33, height=20)), format)
    rng = np.random.default_rng(3)
    for _ in range(80):
        broken = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for _ in range(rng.integers(0, 6)):
            broken[rng.integers(min(len(broken), 200 if rng.random() < 0.5 else 10**9))] = (
                rng.integers(256)
            )
        data = bytes(broken)
        for read in (
            lambda data: decode_photo(data, ImageSettings()),
            lambda data: size_of(data),
            lambda data: size_of(data, complete=False),
        ):
            try:
                read(data)
            except ImageRejected as error:
                assert error.reason in REASONS
            except HeaderIncomplete:
                pass
