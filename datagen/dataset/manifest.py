"""The manifest: the one record of a finished dataset, written last, and the way to open it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    computed_field,
    model_validator,
)

from datagen.dataset.layout import MANIFEST
from datagen.dataset.records import CodecRecord, RejectedCount, ShardRecord
from datagen.dataset.statistics import Statistics
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import FrozenModel, as_json, read_record, to_json
from datagen.settings import DatasetRecipe


class Manifest(FrozenModel):
    """The whole dataset in one record."""

    schema_version: Literal[1, 2] = 2
    recipe: dict[str, Any]
    """`DatasetRecipe.content()`: the settings that decide the bytes."""
    recipe_digest: str
    sources: tuple[str, ...]
    """Sources of all builds together."""
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

    _digest_v1: str = PrivateAttr("")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def digest(self) -> str:
        """Identifies the samples: SHA-256 over the recipe and all shards, but not the pictures."""
        shards = (f"{shard.sha256} {shard.path}\n" for shard in self.shards)
        return self._digest_v1 or _sha256("".join([f"{self.recipe_digest}\n", *shards]).encode())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def checksum(self) -> str:
        """SHA-256 of `manifest.json` without this last field."""
        return _sha256(to_json(self, exclude={"checksum"}))

    @model_validator(mode="wrap")
    @classmethod
    def _check_stored(
        cls, content: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        """Refuses a manifest that was edited: a stored checksum must match the content."""
        if info.mode != "json" or not isinstance(content, dict):
            return handler(content)
        if content.get("schema_version") == 1:
            return cls._check_v1(content, handler)
        derived = ("digest", "checksum")
        manifest = handler({name: content[name] for name in content if name not in derived})
        for name in derived:
            if content.get(name) != getattr(manifest, name):
                raise ValueError(f"{name} is not that of the content: it was changed or damaged")
        return manifest

    @classmethod
    def _check_v1(cls, content: dict[str, Any], handler: ModelWrapValidatorHandler[Self]) -> Self:
        """In version 1 the digest covered the whole file; it still identifies such a dataset."""
        rest = {name: content[name] for name in content if name != "digest"}
        if content.get("digest") != _sha256(as_json(rest)):
            raise ValueError("digest is not that of the content: it was changed or damaged")
        stats = {name: rest["stats"][name] for name in rest["stats"] if name != "scale"}
        manifest = handler({**rest, "stats": stats})
        manifest._digest_v1 = content["digest"]
        return manifest

    def dataset_recipe(self, output: str) -> DatasetRecipe:
        """The recipe, for a dataset at `output`."""
        places = {"sources": self.sources, "output": output}
        return DatasetRecipe.model_validate({**self.recipe, **places})


def file_hashes(output: str, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of written files of a dataset, for `Manifest.files`."""
    return {name: _sha256(storage.read_bytes(storage.join(output, name))) for name in sorted(names)}


class Dataset(NamedTuple):
    """A finished dataset."""

    manifest: Manifest
    root: str
    """Its folder or `s3://` prefix."""


def open_dataset(uri: str) -> Dataset:
    """The dataset, given its folder or its `manifest.json`.

    Raises:
        FlowmapsrError: the manifest is missing, from another version, or malformed.
    """
    root = uri.removesuffix(f"/{MANIFEST}").rstrip("/")
    return Dataset(load_manifest(root), root)


def load_manifest(root: str) -> Manifest:
    """The manifest of the dataset in a folder; see `open_dataset`."""
    path = storage.join(root, MANIFEST)
    remedy = "restore it, or build the dataset again with this flowmapsr"
    manifest = read_record(path, Manifest, remedy=remedy)
    if manifest is None:
        raise FlowmapsrError(
            f"{path}: there is no manifest, so there is no finished dataset here; "
            "check the address, or run the same `flowmapsr dataset build` again, which finishes a "
            "build that stopped and writes a manifest that was lost"
        )
    return manifest


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
