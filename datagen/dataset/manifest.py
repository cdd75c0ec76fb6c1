"""Turns the records of finished shards into the manifest, the dataset's only commit, and back.

Knows the fields of the files, not how samples are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import (
    ModelWrapValidatorHandler,
    ValidationInfo,
    computed_field,
    model_validator,
)

from datagen.dataset.layout import MANIFEST
from datagen.dataset.records import CodecRecord, RejectedCount, ShardRecord
from datagen.dataset.statistics import Statistics
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import FrozenModel, read_record, to_json
from datagen.settings import DatasetRecipe


class Manifest(FrozenModel):
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
        return hashlib.sha256(to_json(self, exclude={"digest"})).hexdigest()

    @model_validator(mode="wrap")
    @classmethod
    def _check_digest(
        cls, content: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        """A stored digest must match the content: an edited manifest is refused."""
        if not isinstance(content, dict) or "digest" not in content:
            manifest = handler(content)
            if info.mode == "json":
                raise ValueError("digest is missing")
            return manifest
        manifest = handler({name: content[name] for name in content if name != "digest"})
        if manifest.digest != content["digest"]:
            raise ValueError("digest is not that of the content: the file was changed or damaged")
        return manifest

    def dataset_recipe(self, output: str) -> DatasetRecipe:
        """The recipe again, for a dataset that lies at `output`."""
        return DatasetRecipe.model_validate(
            {**self.recipe, "sources": self.sources, "output": output}
        )


def file_hashes(output: str, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of a dataset, for `Manifest.files`; they must be written already."""
    return {
        name: hashlib.sha256(storage.read_bytes(storage.join(output, name))).hexdigest()
        for name in sorted(names)
    }


def dataset_of(uri: str) -> str:
    """The dataset folder, given it or its manifest.json."""
    return uri.removesuffix("/" + MANIFEST) if uri.endswith("/" + MANIFEST) else uri.rstrip("/")


def load_manifest(uri: str) -> Manifest:
    """The manifest of a dataset, given its folder or the file.

    Raises FlowmapsrError when it is missing, of another schema version, or malformed.
    """
    path = uri if uri.rstrip("/").endswith(".json") else storage.join(uri, MANIFEST)
    manifest = read_record(
        path, Manifest, remedy="restore it, or build the dataset again with this flowmapsr"
    )
    if manifest is None:
        raise FlowmapsrError(
            f"{path}: there is no manifest, so there is no finished dataset here; "
            "check the address, or finish it with `flowmapsr dataset build`"
        )
    return manifest
