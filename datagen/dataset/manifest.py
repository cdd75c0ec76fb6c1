"""Turns the records of finished shards into the manifest, the dataset's only commit, and back.

Knows the fields of the files, not how samples are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    ModelWrapValidatorHandler,
    ValidationError,
    computed_field,
    model_validator,
)

from datagen.dataset.layout import MANIFEST
from datagen.dataset.records import CodecRecord, RejectedCount, ShardRecord
from datagen.dataset.statistics import Statistics
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import Settings
from datagen.settings import DatasetRecipe

SCHEMA_VERSION = 1

R = TypeVar("R", bound=Settings)


class Manifest(Settings):
    """The whole dataset in one record."""

    schema_version: Literal[1] = 1
    recipe: dict[str, Any]
    """`DatasetRecipe.content()`: the settings that decide the bytes."""
    recipe_digest: str
    sources: tuple[str, ...]
    """Where photos were looked for, in all builds together."""
    codec: CodecRecord
    num_samples: int
    num_shards: int
    bytes: int
    shards: tuple[ShardRecord, ...]
    rejected: RejectedCount
    stats: Statistics
    files: dict[str, str] = {}
    """SHA-256 of the dataset's other files, by name; not of `sources.jsonl`, which has its own
    checksum and changes when photos move."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def digest(self) -> str:
        """The name of exactly this dataset: SHA-256 of `manifest.json` without this last field."""
        return hashlib.sha256(_json(self.model_dump(mode="json", exclude={"digest"}))).hexdigest()

    @model_validator(mode="wrap")
    @classmethod
    def _check_digest(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """A stored digest must be that of the rest: a manifest that was touched is no manifest."""
        if not isinstance(content, dict) or "digest" not in content:
            return handler(content)
        manifest = handler({name: content[name] for name in content if name != "digest"})
        if manifest.digest != content["digest"]:
            raise ValueError("digest is not that of the content: the file was changed or damaged")
        return manifest

    def dataset_recipe(self, output: str) -> DatasetRecipe:
        """The recipe again, for a dataset that lies at `output`."""
        return DatasetRecipe.model_validate(
            {**self.recipe, "sources": self.sources, "output": output}
        )


def to_json(record: Settings) -> bytes:
    """Readable JSON whose bytes depend on the content only."""
    return _json(record.model_dump(mode="json"))


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def file_hashes(output: str, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of a dataset, for `Manifest.files`; they must be written already."""
    return {
        name: hashlib.sha256(storage.read_bytes(storage.join(output, name))).hexdigest()
        for name in sorted(names)
    }


def to_compact_json(record: Settings) -> bytes:
    """JSON without spaces, for records of millions of entries."""
    return record.model_dump_json().encode() + b"\n"


def parse(record: type[R], uri: str) -> R:
    """Reads a JSON record of datagen's own; FlowmapsrError when it is missing or malformed."""
    try:
        return record.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise FlowmapsrError(
            f"{uri}: not a valid {record.__name__} ({_first_fault(error)}); restore the file, "
            "or remove it and build the dataset again"
        ) from error


def dataset_of(uri: str) -> str:
    """The dataset folder, given it or its manifest.json."""
    return uri.removesuffix("/" + MANIFEST) if uri.endswith("/" + MANIFEST) else uri.rstrip("/")


def load_manifest(uri: str) -> Manifest:
    """The manifest of a dataset, given its folder or the file.

    Raises FlowmapsrError when it is missing, of another schema version, or malformed.
    """
    path = uri if uri.rstrip("/").endswith(".json") else storage.join(uri, MANIFEST)
    try:
        data = storage.read_bytes(path)
    except storage.NotFoundError as error:
        raise FlowmapsrError(
            f"{path}: there is no manifest, so there is no finished dataset here; "
            "check the address, or finish it with `flowmapsr dataset build`"
        ) from error
    _check_version(path, data)
    return parse(Manifest, path)


def _check_version(path: str, data: bytes) -> None:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise FlowmapsrError(f"{path}: not JSON ({error}); restore the file") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise FlowmapsrError(
            f"{path}: schema_version is {version}, this program reads {SCHEMA_VERSION}; "
            "build the dataset again or use the program that made it"
        )
    if "digest" not in content:
        raise FlowmapsrError(f"{path}: digest is missing; restore the file")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"]) or "content"
    return f"{where}: {fault['msg']}"
