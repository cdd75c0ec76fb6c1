"""What would end a command early is found here, before Prefect and Ray start: in about 3 s.

Loads no torch, no Prefect and no Ray.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from datagen.build.plan import plan_dataset
from datagen.build.survey import Survey, survey
from datagen.errors import FlowmapsrError
from datagen.io.local import dangling_link
from datagen.io.lock import BUILD, output_lock
from datagen.io.open_files import check_limit
from datagen.photos.scan import C, MapChunks, R
from datagen.settings import DatasetRecipe
from pipelines.environment import temporary_folder
from pipelines.terminal.doing import doing
from training.monitoring.json_log import tell
from training.run_dir.lock import run_lock
from training.settings.recipe import TrainingRecipe
from training.tracking.store.address import database_file, mlflow_installed, tracking_uri
from training.tracking.store.database import check_database

LOOKING_SECONDS = 2.0
"""For which the command itself looks at new photos: some thousands on a disk. Where there are more,
Ray's workers look at them all."""
_AT_ONCE = 32  # photos; the time is looked at between them
LONGEST_SOCKET = 107
"""Bytes of a socket's path that Linux allows."""
SOCKET_OF_RAY = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest below its folder for temporary files."""


def check_surroundings() -> None:
    """Checks the folders that servers of this command write to, and names the new ones.

    Raises:
        FlowmapsrError: one cannot be written, and names the variable that moves it; or too few
            files may be open.
    """
    check_limit()
    places: list[tuple[str, Path]] = []
    database = database_file(tracking_uri())
    if database is not None and mlflow_installed():
        advice = "MLFLOW_TRACKING_URI, such as sqlite:////data/mlflow.db"
        _require_writable(database.parent, "MLflow's database", advice)
        check_database(database)
        places.append(("MLflow's runs", database))
    if not os.environ.get("PREFECT_API_URL"):
        home = Path(os.path.expanduser(os.environ.get("PREFECT_HOME") or "~/.prefect"))
        _require_writable(home, "Prefect's database", "PREFECT_HOME, or HOME,")
        places.append(("Prefect's runs", home / "prefect.db"))
    if not os.environ.get("RAY_ADDRESS"):
        temporary = Path(temporary_folder())
        _require_writable(
            temporary, "Ray's logs and sockets", "RAY_TMPDIR, such as RAY_TMPDIR=/tmp,"
        )
        excess = len(os.fsencode(temporary / SOCKET_OF_RAY)) - LONGEST_SOCKET
        if excess > 0:
            raise FlowmapsrError(
                f"the path of the folder for temporary files, {temporary}, is {excess} bytes too "
                "long for the sockets of Ray; set RAY_TMPDIR to a shorter one, such as "
                "RAY_TMPDIR=/tmp"
            )
        places.append(("Ray's logs", temporary / "ray"))
    new = [f"{what} to {path}" for what, path in places if not path.exists()]
    if new:
        tell(f"Beside its output, this command writes {', '.join(new)}")


def check_build(recipe: DatasetRecipe, found: Survey, *, take_over: bool = False) -> None:
    """Checks that a build may begin; writes the plan already if its photos are looked at in time.

    Raises:
        FlowmapsrError: another build holds the output, it cannot be written, or too many photos
            cannot be used.
    """
    doing("looking at the photos")
    with output_lock(recipe.output, BUILD, take_over=take_over), suppress(_OutOfTime):
        plan_dataset(recipe, listing=found.listing, map_chunks=_in_time(LOOKING_SECONDS))


class _OutOfTime(Exception):
    """There are too many photos for the command itself."""


def _in_time(seconds: float) -> MapChunks:
    """A `map` over chunks of photos that gives up after so many seconds."""
    end = time.monotonic() + seconds

    def work_on(work: Callable[[Sequence[C]], list[R]], chunk: Sequence[C]) -> Iterator[R]:
        for start in range(0, len(chunk), _AT_ONCE):
            if time.monotonic() > end:
                raise _OutOfTime
            yield from work(chunk[start : start + _AT_ONCE])

    return lambda work, chunks: (list(work_on(work, chunk)) for chunk in chunks)


def check_dataset(recipe: DatasetRecipe) -> None:
    """`check_build` with a listing of its own, unless the dataset is complete."""
    doing("listing the photos")
    found = survey(recipe)
    if found.complete is None:
        check_build(recipe, found)


def check_place(recipe: TrainingRecipe, *, take_over: bool = False) -> None:
    """Checks that a training may write to its folder.

    Raises:
        FlowmapsrError: another training holds it, or it cannot be written.
    """
    with run_lock(recipe, take_over=take_over):
        pass


def _require_writable(folder: Path, what: str, variable: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = dangling_link(folder) or error.strerror
        raise FlowmapsrError(
            f"{folder} cannot be written ({reason}), where {what} would go; set {variable} to a "
            "place that can"
        ) from error
