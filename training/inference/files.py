"""Upscales files: reads each, runs the model, and writes the result with what it was made by."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from datagen.errors import FlowmapsrError
from datagen.photos.source_file import read_photo
from training.inference.color import ColorFix
from training.inference.encode import FORMATS, check_size, encode
from training.inference.jobs import Job
from training.inference.made import publish, sha256
from training.inference.metadata import made_by, without_gps
from training.inference.picture import Picture, enlarged_size, read_picture

if TYPE_CHECKING:
    from training.inference.upscaler import Upscaler

log = logging.getLogger(__name__)

DEMO_RUN = Path("demo-output") / "run"


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


@dataclass
class UpscaleReport:
    """How each photo ended."""

    written: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Photo and reason."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """Photo and what of it was not kept."""
    megapixels: float = 0.0
    """Of the results."""
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Megapixels of results in a second."""
        return self.megapixels / self.seconds if self.seconds else 0.0


def default_model() -> str:
    """The model of a demo made in this folder. Raises `FlowmapsrError` when there is none."""
    if DEMO_RUN.is_dir():
        return str(DEMO_RUN)
    raise FlowmapsrError(
        f"no model is given and {DEMO_RUN} is not here; name a model or run folder with --model, "
        f"or make one with: flowmapsr demo --output {DEMO_RUN.parent}"
    )


def settings_digest(upscaler: Upscaler, settings: UpscaleSettings) -> str:
    """Of the model's files and all settings that a result depends on."""
    resolved = replace(
        settings,
        steps=settings.steps or upscaler.restorer.usual_steps,
        color_fix=settings.color_fix or upscaler.usual_color_fix,
    )
    return sha256(f"{upscaler.digest()} {resolved}".encode())


def upscale_all(
    jobs: Sequence[Job],
    upscaler: Upscaler,
    settings: UpscaleSettings,
    *,
    digest: str = "",
    on_done: Callable[[str, UpscaleReport], None] = lambda photo, report: None,
) -> UpscaleReport:
    """Runs every job; a photo that cannot be upscaled is reported and the others are done.

    Args:
        digest: that of `settings_digest`, for the records of a folder's results.

    Raises:
        FlowmapsrError: a result cannot be written, so the others could not be either.
    """
    least, most = upscaler.config.degradation.scale
    if not least <= settings.scale <= most:
        log.warning(
            "the model was trained for scales from %g to %g, not for %g: results may be worse",
            *(least, most, settings.scale),
        )
    report, start = UpscaleReport(), time.monotonic()
    for job in jobs:
        try:
            photo = read_photo(job.source)
            result, data, notes = _upscaled(photo, job.target, upscaler, settings)
        except FlowmapsrError as error:
            report.failed.append((job.source.uri, str(error)))
        else:
            publish(job, photo, data, digest)
            report.written.append(job.target)
            report.notes += [(job.source.uri, note) for note in notes]
            report.megapixels += result.rgb[..., 0].size / 1e6
        report.seconds = time.monotonic() - start
        on_done(job.source.uri, report)
    return report


def _upscaled(
    photo: bytes, target: str, upscaler: Upscaler, settings: UpscaleSettings
) -> tuple[Picture, bytes, list[str]]:
    """A photo's file to its result, the file that this becomes, and what could not be kept."""
    picture = read_picture(photo)
    format = FORMATS[PurePosixPath(target).suffix.lower()]
    check_size(enlarged_size(picture.rgb, settings.scale), format)
    steps = settings.steps or upscaler.restorer.usual_steps
    how = settings.color_fix or upscaler.usual_color_fix
    result = upscaler.upscale_picture(
        picture,
        scale=settings.scale,
        steps=steps,
        color_fix=how,
        color_strength=settings.color_strength,
    )
    metadata = without_gps(result.metadata) if settings.strip_gps else result.metadata
    made = {
        "model": f"{upscaler.method}, stage {upscaler.config.stage}",
        "modelVersion": f"{upscaler.config.recipe_digest[:12]}, step {upscaler.config.step}",
        "software": f"flowmapsr {version('flowmapsr')}",
        "scale": f"{settings.scale:g}",
        "steps": str(steps),
        "seed": str(settings.seed),
        "colorFix": how,
        "colorStrength": f"{settings.color_strength:g}",
    }
    finished = replace(result, metadata=made_by(metadata, made))
    data, lost = encode(finished, format, settings.quality)
    return finished, data, [*picture.notes, *lost]
