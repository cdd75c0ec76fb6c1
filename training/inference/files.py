"""Upscales files and folders: never overwrites by accident, skips unreadable images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.decode import SUFFIXES
from training.inference.color import ColorFix
from training.inference.encode import FORMATS, check_size, encode
from training.inference.metadata import made_by, without_gps
from training.inference.picture import enlarged_size, read_picture

if TYPE_CHECKING:
    from training.inference.upscaler import Upscaler

DEMO_RUN = Path("demo-output") / "run"


@dataclass(frozen=True)
class Job:
    """One photo and the file it becomes."""

    source: Path
    target: Path


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
    """How each job ended."""

    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Source and reason."""
    notes: list[tuple[Path, str]] = field(default_factory=list)
    """Source and what of it was not kept."""


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
    settings: UpscaleSettings,
    *,
    on_done: Callable[[Path], None] = lambda source: None,
) -> UpscaleReport:
    """Runs every job; an image that cannot be upscaled is reported and the others are done.

    Raises:
        FlowmapsrError: a result cannot be written, so the others could not be either.
    """
    report = UpscaleReport()
    for job in jobs:
        try:
            data, notes = _upscaled(job, upscaler, settings)
        except FlowmapsrError as error:
            report.failed.append((job.source, str(error)))
        else:
            storage.write_bytes(str(job.target), data)
            report.written.append(job.target)
            report.notes += [(job.source, note) for note in notes]
        on_done(job.source)
    return report


def _upscaled(job: Job, upscaler: Upscaler, settings: UpscaleSettings) -> tuple[bytes, list[str]]:
    """A photo's file to the file that it becomes, and what could not be kept."""
    picture = read_picture(storage.read_bytes(str(job.source)))
    format = FORMATS[job.target.suffix.lower()]
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
    return data, [*picture.notes, *lost]


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
