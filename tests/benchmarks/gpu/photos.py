"""Which photos of a folder are trained on, and which are held out."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from pipelines.demo import TRAINING_PHOTOS, copy_photos

SUFFIXES = {".jpg", ".jpeg", ".png"}


def photos_or_those_of_the_demo(given: Path | None, work: Path) -> Path:
    """The folder, or one with the photos that come with two libraries where none is given."""
    if given is not None:
        return given.absolute()
    folder = work / "demo-photos"
    if not folder.is_dir():
        copy_photos(TRAINING_PHOTOS, folder)
    return folder


def smallest_first(folder: Path) -> list[Path]:
    """All photos below a folder, by their pixels."""
    sizes: dict[Path, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            with Image.open(path) as photo:
                sizes[path] = photo.width * photo.height
    return sorted(sizes, key=lambda path: sizes[path])


def copied(photos: list[Path], folder: Path) -> Path:
    """A folder with copies of the photos, which may have the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(photos):
        shutil.copy(path, folder / f"{index:03d}-{path.name}")
    return folder


def middles(photos: list[Path], folder: Path, *, side: int) -> Path:
    """A folder with the middle square of each photo, without loss."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(photos):
        with Image.open(path) as photo:
            left, top = (max(0, (length - side) // 2) for length in photo.size)
            middle = photo.convert("RGB").crop((left, top, left + side, top + side))
            middle.save(folder / f"{index:03d}-{path.stem}.png")
    return folder
