"""Shows work on the page of its Prefect run: progress while it runs; a summary and pictures at the
end. A slow or lost server costs a warning.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from uuid import UUID

from PIL import Image
from prefect import artifacts
from prefect.context import FlowRunContext

from datagen.errors import first_line
from datagen.io import storage
from pipelines.orchestration.guard import artifact_slug
from pipelines.orchestration.run_report import say, side_thread, tell, warn

UPDATE_SECONDS = 5.0
SILENCE_SECONDS = 30.0
"""Pause after a failed update."""
LAST_SECONDS = 5.0
"""How long finished work waits for its last progress."""
PICTURE_WIDTH, PICTURE_HEIGHT = 900, 2700
"""Most pixels of a picture that is shown on a page: some 100 to 200 kB."""

Progress = tuple[float, str]
"""How much of some work is done, in percent, and in words."""


@contextmanager
def progress_shown(output: str, look: Callable[[], Progress]) -> Iterator[None]:
    """Shows progress on the page of the current flow run for the length of the block: in an
    artifact, and each tenth of the work in the log."""
    if FlowRunContext.get() is None:
        yield
        return
    stop, key = threading.Event(), f"{artifact_slug(output)}-progress"
    thread = side_thread(lambda: _follow(look, key, stop), name="prefect-progress")
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=LAST_SECONDS)


def _follow(look: Callable[[], Progress], key: str, stop: threading.Event) -> None:
    """Publishes progress every few seconds when it has changed, and once at the end."""
    artifact: UUID | None = None
    shown: Progress | None = None
    pause, last = 0.0, False
    while not last:
        last = stop.wait(timeout=pause)
        pause = UPDATE_SECONDS
        try:
            seen = percent, text = look()
            if shown is not None and percent // 10 > shown[0] // 10:
                say(f"{10 * int(percent // 10)} %: {text}")
            if artifact is None:
                created = artifacts.create_progress_artifact(percent, key, text)
                assert isinstance(created, UUID)  # not a coroutine: no event loop in this thread
                artifact = created
            elif seen != shown:
                artifacts.update_progress_artifact(artifact, percent, text)
            shown = seen
        except Exception as error:  # logged here: the work continues without a page
            pause = SILENCE_SECONDS
            warn(first_line(error))


def show_end(output: str, message: str, summary: str, pictures: Sequence[str]) -> None:
    """Tells what a run did, with a page of Markdown and some pictures, given their addresses."""
    key = artifact_slug(output)

    def add() -> None:
        artifacts.create_markdown_artifact(summary, key=f"{key}-summary", description=message)
        if pictures:
            artifacts.create_image_artifact(
                picture_address([storage.read_bytes(one) for one in pictures]),
                key=f"{key}-picture",
                description=f"{', '.join(f'`{one}`' for one in pictures)}, made smaller",
            )

    tell(message, add)


def picture_address(files: Sequence[bytes]) -> str:
    """Files of pictures -> an address that holds them, below each other; browsers open none of a
    disk from a page."""
    images = [Image.open(BytesIO(data)).convert("RGB") for data in files]
    width, heights = max(one.width for one in images), [one.height for one in images]
    sheet = Image.new("RGB", (width, sum(heights)))
    for index, image in enumerate(images):
        sheet.paste(image, (0, sum(heights[:index])))
    sheet.thumbnail((PICTURE_WIDTH, PICTURE_HEIGHT))
    small = BytesIO()
    sheet.save(small, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
