"""The upscaler as programs use it: arrays, images, lists and files; progress, and stopping."""

from __future__ import annotations

import io
import re
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from datagen.errors import FlowmapsrError
from tests.support.models import saved_model
from training.inference.pictures.pixels import bicubic
from training.inference.upscaler import Upscaler
from training.inference.watch import UpscalingStopped, Watch
from training.settings.model import ModelSettings

README = Path(__file__).parents[3] / "README.md"


@pytest.fixture
def model(tmp_path: Path, tiny_model: ModelSettings) -> Path:
    """Enlarges by bicubic interpolation."""
    return saved_model(tmp_path / "model", tiny_model, trained=False)


@pytest.fixture
def upscaler(model: Path) -> Upscaler:
    return Upscaler.from_pretrained(model)


PHOTO = np.ascontiguousarray(astronaut()[60:80, 200:230])
SEEN = np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))


@pytest.mark.parametrize(
    "image",
    [
        PHOTO,
        PHOTO.astype(np.uint16) * 257,
        PHOTO[..., 0],
        PHOTO[..., 0].astype(np.uint16) * 257,
        np.dstack([PHOTO, SEEN]),
        Image.fromarray(PHOTO),
        Image.fromarray(PHOTO[..., 0]),
        Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257),
        Image.fromarray(np.dstack([PHOTO, SEEN])),
        Image.fromarray(PHOTO[..., :2]).convert("LA"),
    ],
    ids=["RGB", "RGB of 16 bits", "gray", "gray of 16 bits", "alpha"] + ["image"] * 5,
)
def test_a_picture_comes_back_in_the_form_it_was_given_in(
    upscaler: Upscaler, image: np.ndarray | Image.Image
) -> None:
    result = upscaler.upscale(image, scale=2)
    if isinstance(image, Image.Image):
        assert isinstance(result, Image.Image) and result.mode == image.mode
    given, pixels = np.asarray(image), np.asarray(result)
    assert (pixels.dtype, pixels.shape) == (given.dtype, (40, 60, *given.shape[2:]))
    if given.shape[2:] != (4,):  # whose colors grow where little of them is seen
        assert np.array_equal(pixels, bicubic(given, (60, 40)))


def test_a_list_gives_a_list_of_what_each_one_gives(upscaler: Upscaler) -> None:
    results = upscaler.upscale([PHOTO, PHOTO[:5, :4]], scale=1.5)
    assert [one.shape for one in results] == [(30, 45, 3), (8, 6, 3)]
    assert np.array_equal(results[0], upscaler.upscale(PHOTO, scale=1.5))
    assert upscaler.upscale([], scale=2) == []


def test_an_image_comes_upright_and_in_srgb(upscaler: Upscaler) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    stream = io.BytesIO()
    Image.fromarray(PHOTO).save(stream, format="PNG", exif=exif)
    result = upscaler.upscale(Image.open(stream), scale=2)
    assert np.array_equal(np.asarray(result), bicubic(np.rot90(PHOTO, -1).copy(), (40, 60)))
    palette = Image.fromarray(PHOTO).convert("P")
    assert upscaler.upscale(palette, scale=2).mode == "RGB"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PHOTO / 255, r"an array of float64.*uint8"),
        (PHOTO.transpose(2, 0, 1), r"shape \(3, 20, 30\)"),
        (PHOTO[:0], r"shape \(0, 30, 3\)"),
        (Image.new("F", (3, 3)), "mode F.*RGB"),
        ("photo.jpg", "upscale_file takes names"),
    ],
)
def test_what_is_no_picture_is_refused(upscaler: Upscaler, image: object, message: str) -> None:
    with pytest.raises(FlowmapsrError, match=message):
        upscaler.upscale(image, scale=2)  # type: ignore[call-overload]


def test_a_file_is_written_as_the_command_does(upscaler: Upscaler, tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "in.png", dpi=(300, 300))
    notes = upscaler.upscale_file(tmp_path / "in.png", tmp_path / "out.tif", scale=2, steps=1)
    result = Image.open(tmp_path / "out.tif")
    assert notes == [] and np.array_equal(np.asarray(result), bicubic(PHOTO, (60, 40)))
    assert b'flowmapsr:steps="1"' in result.info["xmp"]
    assert result.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    levels = Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257)
    levels.save(tmp_path / "in.png")
    notes = upscaler.upscale_file(tmp_path / "in.png", tmp_path / "out.jpg", scale=2)
    assert notes == ["its 16 bits became 8, which is what JPEG is written with"]


def test_a_file_that_is_no_picture_leaves_nothing(upscaler: Upscaler, tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(PHOTO).save(whole, format="PNG")
    for data in (b"", b"hello", whole.getvalue()[:60]):
        (tmp_path / "in.png").write_bytes(data)
        with pytest.raises(FlowmapsrError):
            upscaler.upscale_file(tmp_path / "in.png", tmp_path / "out.png", scale=2)
    with pytest.raises(FlowmapsrError, match="the original itself"):
        upscaler.upscale_file(tmp_path / "in.png", tmp_path / "in.png", scale=2)
    assert not (tmp_path / "out.png").exists()


def test_progress_rises_with_tiles_and_steps_to_one(model: Path) -> None:
    told: list[float] = []
    tiled = Upscaler.from_pretrained(model, device="cpu", tile=256)
    image = np.tile(PHOTO, (10, 6, 1))
    tiled.upscale([image, image], scale=2, steps=2, on_progress=told.append)
    assert told == sorted(set(told)) and (told[0], told[-1]) == (0, 1)
    sixths = {round(share / 6, 6) for share in range(7)}  # two steps and the rest, each twice
    assert sixths <= {round(share, 6) for share in told}
    assert len(told) > 20  # tiles between them


def test_a_picture_stops_between_tiles_and_the_next_is_whole(model: Path, tmp_path: Path) -> None:
    upscaler, cancel, told = Upscaler.from_pretrained(model, device="cpu", tile=256), Event(), []

    def stop(share: float) -> None:
        told.append(share)
        if share > 0.1:
            cancel.set()

    Image.fromarray(np.tile(PHOTO, (10, 6, 1))).save(tmp_path / "in.png")
    files = tmp_path / "in.png", tmp_path / "out.png"
    with pytest.raises(UpscalingStopped):
        upscaler.upscale_file(*files, scale=2, steps=2, on_progress=stop, cancel=cancel)
    assert told[-1] < 0.3 and not files[1].exists()
    with pytest.raises(ZeroDivisionError):  # what a callback raises
        upscaler.upscale_file(*files, scale=2, on_progress=lambda share: 1 / 0)
    upscaler.upscale_file(*files, scale=2)
    assert Image.open(files[1]).size == (360, 400)


def test_progress_never_falls_where_a_tile_is_done_again() -> None:
    told: list[float] = []
    watch = Watch(told.append)
    watch.begin(1)
    for share in (0.5, 1.0, 0.25):
        watch.part(share)
    watch.step()
    watch.end()
    assert told == [0, 0.25, 0.5, 1]


def test_the_lines_of_the_readme_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match = re.search(r"## Python\n\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert match is not None and len(re.findall(r".+", match[1])) == 5
    Image.fromarray(PHOTO).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(match[1].replace("/data/run", str(model)), names)
    assert Image.open("large.png").size == (120, 80)
    assert isinstance(names["larger"], Image.Image) and names["larger"].size == (60, 40)
