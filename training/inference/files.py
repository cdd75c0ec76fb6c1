"""Upscales a file: reads it, runs the model, and writes the result with what it was made by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, Unpack

from datagen.errors import FlowmapsrError
from datagen.photos.decode import MOST_PIXELS, TooManyPixels
from datagen.photos.source_file import read_photo
from training.inference.how import How
from training.inference.jobs import Job
from training.inference.made import sha256
from training.inference.pictures.decode import Picture, read_picture
from training.inference.pictures.encode import (
    FORMATS,
    check_size,
    check_streamed,
    encode,
    write_bands,
)
from training.inference.pictures.metadata import made_by, without_gps
from training.inference.pictures.pixels import enlarged_size
from training.inference.watch import UpscalingStopped, Watch
from training.restorer_protocol import Restorer
from training.settings.evaluation import ColorFix
from training.weights.model_folder import ModelConfig

log = logging.getLogger(__name__)

DEMO_RUN = Path("demo-output") / "run"


class PictureUpscaler(Protocol):
    """What of an `Upscaler` files are made with."""

    method: str
    restorer: Restorer
    config: ModelConfig
    usual_color_fix: ColorFix

    def digest(self) -> str: ...

    def upscale_picture(
        self, picture: Picture, *, scale: float, watch: Watch | None = None, **how: Unpack[How]
    ) -> Picture: ...

    def is_streamed(self, size: tuple[int, int]) -> bool: ...

    def upscale_bands(
        self, picture: Picture, *, scale: float, watch: Watch | None = None, **how: Unpack[How]
    ) -> Iterator[Picture]: ...


@dataclass(frozen=True)
class UpscaleSettings:
    """What a result depends on, beside photo and model."""

    scale: float
    steps: int | None = None
    """The model's own when None."""
    seed: int = 0
    """As the model was loaded with."""
    color_fix: ColorFix | None = None
    """What suits the model when None."""
    color_strength: float = 1.0
    quality: int | None = None
    """Of JPEG, WebP and AVIF, 1 to 100; that of `QUALITY` when None."""
    strip_gps: bool = False
    max_megapixels: float = MOST_PIXELS / 1e6
    """Of a photo; files with more may be made to fill memory."""

    def how(self) -> How:
        return {
            "steps": self.steps,
            "color_fix": self.color_fix,
            "color_strength": self.color_strength,
        }


@dataclass(frozen=True)
class ReadPhoto:
    """A photo's file, and what it shows."""

    file: bytes
    picture: Picture


@dataclass(frozen=True)
class UpscaledFile:
    """A photo's file and the one that it becomes."""

    photo: bytes
    write: Callable[[IO[bytes]], None]
    """Writes it to a seekable stream, or raises `PhotoFailed`."""
    is_streamed: bool
    """Whether the model makes it while it is written."""
    notes: list[str]
    """What of the photo could not be kept; all of it is known when the file is written."""
    megapixels: float


class PhotoFailed(FlowmapsrError):
    """Nothing can be made of one photo; those after it are not concerned."""


def default_model() -> str:
    """The model of a demo made in this folder. Raises `FlowmapsrError` when there is none."""
    if DEMO_RUN.is_dir():
        return str(DEMO_RUN)
    raise FlowmapsrError(
        f"no model is given and {DEMO_RUN} is not here; name a model or run folder with --model, "
        f"or make one with: flowmapsr demo --output {DEMO_RUN.parent}"
    )


def settings_digest(upscaler: PictureUpscaler, settings: UpscaleSettings) -> str:
    """Of the model's files and all settings that a result depends on."""
    decided = replace(_resolved(upscaler, settings), max_megapixels=0)  # decides about no pixel
    return sha256(f"{upscaler.digest()} {decided}".encode())


def warn_of_scale(upscaler: PictureUpscaler, scale: float) -> None:
    """Says so where the model did not see the scale in training."""
    least, most = upscaler.config.degradation.scale
    if not least <= scale <= most:
        log.warning(
            "the model was trained for scales from %g to %g, not for %g: results may be worse",
            *(least, most, scale),
        )


@contextmanager
def _photo_errors() -> Iterator[None]:
    """Tells what is wrong with a photo from what is wrong with the place that is written to."""
    try:
        yield
    except UpscalingStopped:
        raise
    except FlowmapsrError as error:
        raise PhotoFailed(str(error)) from error


def read_file(job: Job, settings: UpscaleSettings) -> ReadPhoto:
    """
    Raises:
        PhotoFailed: no picture, or one too large.
    """
    with _photo_errors():
        file = read_photo(job.source)
        return ReadPhoto(file, _read(file, settings.max_megapixels))


def upscaled_file(
    photo: ReadPhoto,
    job: Job,
    upscaler: PictureUpscaler,
    settings: UpscaleSettings,
    *,
    watch: Watch | None = None,
) -> UpscaledFile:
    """Makes the file that a photo becomes; writes nothing.

    Raises:
        PhotoFailed: it is too large for the memory, or for the format.
    """
    with _photo_errors():
        return _upscaled(photo, job, upscaler, settings, watch)


def _upscaled(
    photo: ReadPhoto,
    job: Job,
    upscaler: PictureUpscaler,
    settings: UpscaleSettings,
    watch: Watch | None,
) -> UpscaledFile:
    picture, format = photo.picture, FORMATS[PurePosixPath(job.target).suffix.lower()]
    size = enlarged_size(picture.rgb, settings.scale)
    check_size(size, format)
    settings = _resolved(upscaler, settings)
    metadata = without_gps(picture.metadata) if settings.strip_gps else picture.metadata
    described = made_by(metadata, _how_made(upscaler, settings))
    picture, notes = replace(picture, metadata=described), list(picture.notes)
    scale, how = settings.scale, settings.how()
    if is_streamed := upscaler.is_streamed(size):
        check_streamed(size, format)

        def write(stream: IO[bytes]) -> None:
            bands = _failing(upscaler.upscale_bands(picture, scale=scale, watch=watch, **how))
            notes.extend(write_bands(stream, bands, size, format))

    else:
        large = upscaler.upscale_picture(picture, scale=scale, watch=watch, **how)

        def write(stream: IO[bytes]) -> None:
            with _photo_errors():
                data, lost = encode(large, format, settings.quality)
            notes.extend(lost)
            stream.write(data)

    return UpscaledFile(photo.file, write, is_streamed, notes, size[0] * size[1] / 1e6)


def _read(photo: bytes, max_megapixels: float) -> Picture:
    try:
        return read_picture(photo, most_pixels=int(max_megapixels * 1e6))
    except TooManyPixels as error:
        raise FlowmapsrError(
            f"too large: files of more than {max_megapixels:.0f} megapixels may be made to fill "
            "memory; if it is a real photo, give a larger --max-megapixels, and have 10 bytes of "
            "memory for each pixel"
        ) from error


def _failing(bands: Iterator[Picture]) -> Iterator[Picture]:
    with _photo_errors():
        yield from bands


def _resolved(upscaler: PictureUpscaler, settings: UpscaleSettings) -> UpscaleSettings:
    """With what suits the model where nothing was asked for."""
    return replace(
        settings,
        steps=settings.steps or upscaler.restorer.usual_steps,
        color_fix=settings.color_fix or upscaler.usual_color_fix,
    )


def _how_made(upscaler: PictureUpscaler, settings: UpscaleSettings) -> dict[str, str]:
    return {
        "model": f"{upscaler.method}, stage {upscaler.config.stage}",
        "modelVersion": f"{upscaler.config.recipe_digest[:12]}, step {upscaler.config.step}",
        "software": f"flowmapsr {version('flowmapsr')}",
        "scale": f"{settings.scale:g}",
        "steps": str(settings.steps),
        "seed": str(settings.seed),
        "colorFix": str(settings.color_fix),
        "colorStrength": f"{settings.color_strength:g}",
    }
