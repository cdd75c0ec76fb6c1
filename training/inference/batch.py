"""Upscales many files: the next one is read and the last one is written while the model works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from training.inference.files import (
    PhotoFailed,
    PictureUpscaler,
    ReadPhoto,
    UpscaledFile,
    UpscaleSettings,
    read_file,
    upscaled_file,
)
from training.inference.jobs import Job
from training.inference.made import publish
from training.inference.pictures.pixels import enlarged_size
from training.inference.under_way import Meter, UnderWay, watch_over
from training.inference.watch import Watch

_READ_AHEAD = 32_000_000
"""Bytes of the largest file that is read while another one is upscaled: it takes memory."""


@dataclass(frozen=True)
class Outcome:
    """How one photo ended."""

    failed: str = ""
    """Why nothing was made of it."""
    notes: tuple[str, ...] = ()
    """What of it was not kept."""
    megapixels: float = 0.0
    """Of the result."""
    put_off: bool = False
    """Its result is so large that it comes in rows, and nothing was made yet."""


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

    def add(self, job: Job, outcome: Outcome) -> None:
        if outcome.failed:
            self.failed.append((job.source.uri, outcome.failed))
            return
        self.written.append(job.target)
        self.notes += [(job.source.uri, note) for note in outcome.notes]
        self.megapixels += outcome.megapixels

    @property
    def speed(self) -> float:
        """Megapixels of results in a second."""
        return self.megapixels / self.seconds if self.seconds else 0.0


def upscale_all(
    jobs: Sequence[Job],
    upscaler: PictureUpscaler,
    settings: UpscaleSettings,
    *,
    digest: str = "",
    on_done: Callable[[str, UpscaleReport], None] = lambda photo, report: None,
    on_progress: Callable[[UnderWay], None] = lambda under_way: None,
) -> UpscaleReport:
    """Runs every job; a photo that cannot be upscaled is reported and the others are done.

    Args:
        digest: that of `settings_digest`, for the records of a folder's results.
        on_done: called in the order of the jobs.
        on_progress: called as the work on a photo goes on.

    Raises:
        FlowmapsrError: a result cannot be written, so the others could not be either.
    """
    report, began = UpscaleReport(), time.monotonic()

    def tell(job: Job, outcome: Outcome) -> None:
        report.add(job, outcome)
        report.seconds = time.monotonic() - began
        on_done(job.source.uri, report)

    meter = Meter(jobs, on_progress)

    def watch_of(job: Job, megapixels: float) -> Watch:
        return watch_over(megapixels, lambda share: meter.reached({job.source.uri: share}))

    written: tuple[Job, Future[Outcome]] | None = None
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        for job, photo in _read_ahead(reader, jobs, settings):
            made = _made(photo, job, upscaler, settings, partial(watch_of, job))
            if written is not None:  # one result at a time waits in memory
                tell(written[0], written[1].result())
                written = None
            if isinstance(made, UpscaledFile) and not made.is_streamed:
                written = job, writer.submit(_published, job, made, digest)
                meter.end(job.source.uri, made.megapixels)
            else:
                ended = made if isinstance(made, Outcome) else _published(job, made, digest)
                meter.end(job.source.uri, ended.megapixels)
                tell(job, ended)
        if written is not None:
            tell(written[0], written[1].result())
    return report


def upscale_job(
    job: Job,
    upscaler: PictureUpscaler,
    settings: UpscaleSettings,
    *,
    digest: str = "",
    put_off_large: bool = False,
    watch_of: Callable[[float], Watch] = lambda megapixels: Watch(),
) -> Outcome:
    """Makes and writes the result of one photo.

    Args:
        put_off_large: makes nothing whose result comes in rows.
        watch_of: what watches over a result of so many megapixels.

    Raises:
        FlowmapsrError: it cannot be written, so that of others could not be either.
    """
    made = _made(lambda: read_file(job, settings), job, upscaler, settings, watch_of)
    if isinstance(made, Outcome):
        return made
    if put_off_large and made.is_streamed:
        return Outcome(put_off=True)
    return _published(job, made, digest)


def _read_ahead(
    reader: ThreadPoolExecutor, jobs: Sequence[Job], settings: UpscaleSettings
) -> Iterator[tuple[Job, Callable[[], ReadPhoto]]]:
    """Each job with what gives its photo, or raises why there is none."""
    ahead: Callable[[], ReadPhoto] | None = None
    for number, job in enumerate(jobs):
        given, ahead = ahead or partial(read_file, job, settings), None
        following = jobs[number + 1 : number + 2]
        if following and following[0].source.bytes <= _READ_AHEAD:
            ahead = reader.submit(read_file, following[0], settings).result
        yield job, given


def _made(
    photo: Callable[[], ReadPhoto],
    job: Job,
    upscaler: PictureUpscaler,
    settings: UpscaleSettings,
    watch_of: Callable[[float], Watch],
) -> UpscaledFile | Outcome:
    try:
        read = photo()
        width, height = enlarged_size(read.picture.rgb, settings.scale)
        watch = watch_of(width * height / 1e6)
        return upscaled_file(read, job, upscaler, settings, watch=watch)
    except PhotoFailed as error:
        return Outcome(failed=str(error))


def _published(job: Job, made: UpscaledFile, digest: str) -> Outcome:
    try:
        publish(job, made.photo, made.write, digest)
    except PhotoFailed as error:
        return Outcome(failed=str(error))
    return Outcome(notes=tuple(made.notes), megapixels=made.megapixels)
