"""A trained model on disk, whatever its kind: `config.json` and safetensors files, written whole
and read with checks."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import safetensors
from pydantic_core import from_json

from datagen.degradation.settings import DegradationSettings
from datagen.errors import FlowmapsrError
from datagen.io.local import errors
from datagen.io.weight_files import read_json
from datagen.records import FrozenModel, read_record
from training.run_dir.paths import RunPaths, StagePaths
from training.settings.model import DEFAULT_KIND, SystemSettings

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CURVE = "quality_curve.json"
"""What was measured of a model, which decides about no pixel."""


class ModelConfig(FrozenModel):
    """`config.json` of a model folder: what every kind of model has there."""

    format_version: Literal[1] = 1
    model: SystemSettings
    """Its `kind` names the system that reads the folder."""
    degradation: DegradationSettings
    """The chain behind the training pairs; evaluation degrades with the same."""
    stage: str
    step: int | None = None
    """Of the stage, whose weights these are; null in models written before it was kept."""
    chosen: str = "last"
    """Why that step: the last one, or the best by a held-out metric."""
    recipe_digest: str
    dataset_digest: str


def count_parameters(folder: Path) -> int:
    """Values of a model folder's weights, from the file's header alone."""
    with safetensors.safe_open(folder / WEIGHTS, framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in list(file.keys())]
    return sum(map(math.prod, shapes))


def digest_of_files(folder: Path) -> str:
    """Of all that decides what a model makes of a picture, by SHA-256."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name != CURVE and not path.name.startswith("."):
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


Config = TypeVar("Config", bound=ModelConfig)


@contextmanager
def new_model_folder(folder: Path, config: ModelConfig) -> Iterator[Path]:
    """A temporary folder for the model's files, which replaces `folder` at the block's end.

    Raises:
        FlowmapsrError: it cannot be written; what was there before still is.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        with errors(str(folder), "write"):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            (temporary / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
            yield temporary
            for path in temporary.iterdir():  # safetensors makes its files private to the user
                shutil.copymode(temporary / CONFIG, path)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
    except safetensors.SafetensorError as error:  # has no error number
        raise FlowmapsrError(
            f"{folder}: cannot write it ({error}); free some space there, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_model(path: str | Path) -> Path:
    """The model folder behind a model folder or a run folder (its last finished stage).

    Raises:
        FlowmapsrError: there is neither, or no stage of the run is finished.
    """
    folder = Path(os.path.expanduser(path))
    if folder.is_file():
        raise FlowmapsrError(f"{folder} is a file; give the folder of the model, or of its run")
    if not folder.is_dir():
        raise FlowmapsrError(f"there is no model folder {folder}; give a model or a run folder")
    if (folder / CONFIG).is_file():
        return folder
    run = RunPaths(folder)
    recipe = run.recipe
    if not recipe.is_file():
        raise FlowmapsrError(f"{folder} holds neither {CONFIG} (a model) nor {recipe.name} (a run)")
    try:
        stages = [stage["name"] for stage in from_json(recipe.read_bytes())["stages"]]
    except (ValueError, TypeError, KeyError) as error:
        raise FlowmapsrError(
            f"{recipe} is corrupt ({error}): name one of the model folders in {folder / 'stages'}"
        ) from error
    for name in reversed(stages):
        model = StagePaths(folder, name).model
        if (model / CONFIG).is_file():
            return model
    raise FlowmapsrError(
        f"no stage of the run {folder} is finished yet (stages: {', '.join(stages)}); run its "
        "training again to continue"
    )


def model_kind(folder: Path) -> str:
    """The kind of the model in a folder, by which its system is found.

    Models without a kind are flow maps: they were written when there was no other. A config that
    cannot be read counts as one, and `load_config` then says what is wrong with it.
    """
    try:
        model = from_json((folder / CONFIG).read_bytes())["model"]
        return str(model.get("kind", DEFAULT_KIND))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return DEFAULT_KIND


def load_config(folder: Path, record: type[Config]) -> Config:
    """Reads and checks `config.json` as the record of its system."""
    other = read_json(folder / CONFIG).get("_class_name")
    if other is not None:
        raise FlowmapsrError(
            f"{folder} is a diffusers {other}, not a model of flowmapsr; train from it with a "
            "stage's init_from"
        )
    remedy = "use the flowmapsr that wrote the model, or train it again"
    config = read_record(folder / CONFIG, record, remedy=remedy)
    if config is None:
        raise FlowmapsrError(f"there is no {folder / CONFIG}; give a model folder or a run folder")
    return config


@contextmanager
def weights_errors(path: Path) -> Iterator[None]:
    """Names the file when its weights do not fit a network inside the block.

    Raises:
        FlowmapsrError: they do not.
    """
    try:
        yield
    except RuntimeError as error:
        raise FlowmapsrError(
            f"{path} does not hold the weights of {path.with_name(CONFIG)}: {error}"
        ) from error
