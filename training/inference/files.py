"""Upscales files and folders: never overwrites by accident, skips unreadable images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.decode import SUFFIXES

if TYPE_CHECKING:
    from training.inference.color import ColorFix
    from training.inference.upscaler import Upscaler

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""What can be written; photos of other formats become PNG."""
JPEG_QUALITY = 95
DEMO_RUN = Path("demo-output") / "run"


@dataclass(frozen=True)
class Job:
    """One photo and the file it becomes."""

    source: Path
    target: Path


@dataclass
class UpscaleReport:
    """How each job ended."""

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Source and reason."""


def default_model() -> str:
    """The model of a demo made in this folder. Raises `FlowmapsrError` when there is none."""
    if DEMO_RUN.is_dir():
        return str(DEMO_RUN)
    raise FlowmapsrError(
        f"no model is given and {DEMO_RUN} is not here; name a model or run folder with --model, "
        f"or make one with: flowmapsr demo --output {DEMO_RUN.parent}"
    )


def plan_jobs(source: Path, output: Path, *, overwrite: bool, skip_existing: bool) -> list[Job]:
    """What to read and write, checked before any work starts.

    Raises:
        FlowmapsrError: nothing to read, a format that cannot be written, or an output that exists.
    """
    if source.is_dir():
        jobs = _folder_jobs(source, output)
    elif source.is_file():
        jobs = [Job(source, _file_target(source, output))]
    else:
        raise FlowmapsrError(f"{source} does not exist; give a photo or a folder of photos")
    _check_originals_safe(jobs)
    existing = [job.target for job in jobs if job.target.exists()]
    if existing and skip_existing:
        return [job for job in jobs if not job.target.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise FlowmapsrError(
            f"{existing[0]}{more} exists already; use --overwrite to replace, --skip-existing to "
            f"make only what is missing, or another --output"
        )
    return jobs


def upscale_all(
    jobs: Sequence[Job],
    upscaler: Upscaler,
    *,
    scale: float,
    steps: int | None = None,
    color_fix: ColorFix | None = None,
    color_strength: float = 1.0,
    on_done: Callable[[Path], None] = lambda source: None,
) -> UpscaleReport:
    """Runs every job; an image that cannot be upscaled is reported and the others are done."""
    report = UpscaleReport()
    for job in jobs:
        try:
            data = storage.read_bytes(str(job.source))
            image = upscaler.upscale_file(
                data,
                scale=scale,
                steps=steps,
                color_fix=color_fix,
                color_strength=color_strength,
            )
            storage.write_bytes(str(job.target), encode(image, job.target.suffix))
        except FlowmapsrError as error:
            report.failed.append((job.source, str(error)))
        else:
            report.written.append(job.target)
        on_done(job.source)
    return report


def encode(image: Image.Image, suffix: str) -> bytes:
    """The picture in the format of `suffix`; where that has no transparency, on white."""
    name = Image.registered_extensions()[suffix.lower()]
    if name in ("JPEG", "BMP") and image.mode in ("RGBA", "LA"):
        image = _on_white(image)
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if name == "JPEG" else {}
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _on_white(image: Image.Image) -> Image.Image:
    solid = "L" if image.mode == "LA" else "RGB"
    background = Image.new(image.mode, image.size, "white")
    return Image.alpha_composite(background.convert("RGBA"), image.convert("RGBA")).convert(solid)


def _folder_jobs(source: Path, output: Path) -> list[Job]:
    if output.is_file():
        raise FlowmapsrError(f"{output} is a file, but {source} is a folder; give a folder to -o")
    inside_output = output.resolve()
    photos = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
        and not (output != source and path.resolve().is_relative_to(inside_output))
    ]
    if not photos:
        raise FlowmapsrError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))})")
    return [Job(path, _target_in(output, path.relative_to(source))) for path in photos]


def _file_target(source: Path, output: Path) -> Path:
    if output.is_dir() or not output.suffix:
        return _target_in(output, Path(source.name))
    if output.suffix.lower() not in FORMATS:
        raise FlowmapsrError(
            f"{output}: cannot write {output.suffix} files; choose from {', '.join(FORMATS)}"
        )
    return output


def _target_in(folder: Path, name: Path) -> Path:
    writable = name.suffix.lower() in FORMATS
    return folder / (name if writable else name.with_suffix(".png"))


def _check_originals_safe(jobs: Iterable[Job]) -> None:
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target == job.source.resolve():
            raise FlowmapsrError(f"{job.target} is the original itself; give another --output")
        if target in taken:
            raise FlowmapsrError(
                f"{job.source} and {taken[target]} would both become {job.target}; rename one"
            )
        taken[target] = job.source
