"""What a model is compared with: interpolation, networks of others, and pictures that another
system made of the same LQ pictures, which an evaluation writes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.photos.decode import ImageRejected, decode_photo
from datagen.photos.source_file import SourceFile, read_photo
from datagen.photos.sources import list_sources
from datagen.settings import ImageSettings
from training.evaluation.measure import Flaw, Made, Method, NoResult
from training.evaluation.other_networks.extras import require_extras
from training.evaluation.other_networks.ncnn_network import ncnn_network
from training.evaluation.other_networks.spandrel_network import spandrel_network
from training.evaluation.photos import DegradedPhoto
from training.inference.pictures.pixels import bicubic
from training.settings.evaluation import (
    Baseline,
    Interpolation,
    NcnnNetwork,
    Pictures,
    SpandrelNetwork,
)

LQ = "lq"
"""Folder of a report, with a folder `x4` ... for each scale."""


def baseline_method(settings: Baseline, scale: float) -> Method:
    """
    Raises:
        FlowmapsrError: there is no such folder of pictures, or none in it; or a package is missing.
    """
    match settings:
        case Pictures():
            return Method(settings.name, 0, MadePictures(settings, scale).restore)
        case SpandrelNetwork() | NcnnNetwork():
            require_extras([settings])
            return Method(settings.name, 0, _network(settings))
        case Interpolation(kind="bicubic"):
            return Method(settings.kind, 0, lambda photo: bicubic(photo.small, photo.size))
        case Interpolation():
            return Method(settings.kind, 0, _lanczos)


def _network(settings: SpandrelNetwork | NcnnNetwork) -> Callable[[DegradedPhoto], Made]:
    """Of one that cannot be made there is no result."""
    try:
        if isinstance(settings, SpandrelNetwork):
            return spandrel_network(settings.file).restore
        return ncnn_network(settings.folder).restore
    except FlowmapsrError as error:
        why = str(error)

    def none(photo: DegradedPhoto) -> Made:
        raise NoResult(Flaw(f"{why}; no result for", photo.name))

    return none


def _lanczos(photo: DegradedPhoto) -> np.ndarray:
    """Pillow's, of three lobes."""
    return np.asarray(Image.fromarray(photo.small).resize(photo.size, Image.Resampling.LANCZOS))


class MadePictures:
    """A folder of results, or its folder `x4` ... of that scale where there is one. Their names are
    those of the LQ pictures, with any suffix of a picture."""

    def __init__(self, settings: Pictures, scale: float) -> None:
        self._folder = settings.folder.rstrip("/")
        try:
            files = list_sources((scale_folder(self._folder, scale),)).files
            self._folder = scale_folder(self._folder, scale)
        except FlowmapsrError:
            files = list_sources((self._folder,)).files
        self._by_name = {_stem(file.uri.removeprefix(f"{self._folder}/")): file for file in files}

    def restore(self, photo: DegradedPhoto) -> Made:
        """
        Raises:
            NoResult: there is none that can be read.
        """
        file = self._by_name.get(_stem(photo.name))
        if file is None:
            raise NoResult(Flaw(f"no picture in {self._folder} of", photo.name))
        picture = self._read(file)
        height, width = picture.shape[:2]
        if (width, height) == photo.size:
            return Made(picture)
        wanted = f"{photo.size[0]}x{photo.size[1]}"
        resized = Image.fromarray(picture).resize(photo.size, Image.Resampling.BICUBIC)
        flaw = Flaw(
            "resized, having another size:", f"{photo.name} from {width}x{height} to {wanted}"
        )
        return Made(np.asarray(resized), flaw)

    def _read(self, file: SourceFile) -> np.ndarray:
        try:
            return decode_photo(read_photo(file), ImageSettings())
        except ImageRejected as error:
            raise NoResult(Flaw("unreadable:", f"{file.uri} ({error})")) from error


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def scale_folder(base: str, scale: float) -> str:
    """Where a scale's pictures lie."""
    return f"{base.rstrip('/')}/x{scale:g}"


def write_lq(folder: str, scale: float, photos: list[DegradedPhoto]) -> None:
    """The LQ pictures as PNG, named as their photos: what other systems are run on.

    Raises:
        FlowmapsrError: two photos differ in their suffix only, or a file cannot be written.
    """
    require_own_lq([photo.name for photo in photos])
    for photo in photos:
        path = f"{scale_folder(folder, scale)}/{_stem(photo.name)}.png"
        with storage.open_atomic(path) as file:
            Image.fromarray(photo.small).save(file, format="PNG")


def require_own_lq(photos: Sequence[str]) -> None:
    """
    Raises:
        FlowmapsrError: two of the names differ in their suffix only.
    """
    names: dict[str, str] = {}
    for name in photos:
        other = names.setdefault(_stem(name), name)
        if other != name:
            raise FlowmapsrError(
                f"{other} and {name} would get one LQ picture, {_stem(name)}.png; rename one"
            )
