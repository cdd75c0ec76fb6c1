"""The manifest: the one record of a finished dataset, written last, and the way to open it.

A build that extends a dataset replaces `manifest.json` and takes no shard away, so each manifest is
kept under its digest as well: a training goes on with the samples that it began with.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationInfo,
    computed_field,
    model_validator,
)

from datagen.dataset.layout import MANIFEST, MANIFESTS, kept_path
from datagen.dataset.records import CodecRecord, RejectedCount, ShardRecord
from datagen.dataset.statistics import Statistics
from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.pair_settings import PairSettings
from datagen.records import FrozenModel, UnreadableRecord, as_json, read_record, to_json
from datagen.settings import DatasetRecipe

_KEPT = re.compile(rf"(.*)/{MANIFESTS}/([0-9a-f]{{64}})\.json")
_REMEDY = "restore it, or build the dataset again with this flowmapsr"
_REMEDY_OF_KEPT = "restore it, or remove it: a training that began with it cannot go on then"


class Manifest(FrozenModel):
    """The whole dataset in one record."""

    schema_version: Literal[1, 2] = 2
    recipe: dict[str, Any]
    """`DatasetRecipe.content()`: the settings that decide the bytes."""
    recipe_digest: str
    sources: tuple[str, ...]
    """Sources of all builds together."""
    pairs: tuple[PairSettings, ...] = Field((), exclude_if=lambda pairs: not pairs)
    """Pairs of all builds together."""
    codec: CodecRecord | None
    """None where no latents are stored."""
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

    def require_codec(self) -> CodecRecord:
        """What made the latents; FlowmapsrError if there are none."""
        if self.codec is None:
            raise FlowmapsrError(
                "the dataset stores no latents: build it with latents=[hq,lq] for this training"
            )
        return self.codec

    def dataset_recipe(self, output: str) -> DatasetRecipe:
        """The recipe, for a dataset at `output`."""
        places = {"sources": self.sources, "pairs": self.pairs, "output": output}
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
    """The dataset, given its folder or its `manifest.json`; as it once was, given a manifest that
    is kept in `manifests/`.

    Raises:
        FlowmapsrError: the manifest is missing, from another version, or malformed.
    """
    root, manifest = dataset_root(uri), _read(uri)
    if manifest is not None:
        return Dataset(manifest, root)
    if _KEPT.fullmatch(uri):
        raise FlowmapsrError(
            f"{uri}: there is no such manifest: the dataset was never in that state; give one that "
            f"is in {storage.join(root, MANIFESTS)}, or the folder of the dataset"
        )
    raise FlowmapsrError(
        f"{storage.join(root, MANIFEST)}: there is no manifest, so there is no finished dataset "
        "here; check the address, or run the same `flowmapsr dataset build` again, which finishes "
        "a build that stopped and writes a manifest that was lost"
    )


def load_manifest(root: str) -> Manifest:
    """The manifest of the dataset in a folder; see `open_dataset`."""
    return open_dataset(root).manifest


def dataset_root(uri: str) -> str:
    """The folder or prefix of a dataset, given as to `open_dataset`."""
    kept = _KEPT.fullmatch(uri)
    return kept[1] if kept else uri.removesuffix(f"/{MANIFEST}").rstrip("/")


def open_state(uri: str, digest: str) -> Dataset | None:
    """The dataset at an address as it was when it had the digest; None if it never had it.

    Its `manifest.json` may be broken or gone. It is looked at first: an account that may not list a
    bucket is refused a file that is not there, such as the copies of an older version's dataset.
    """
    root = dataset_root(uri)
    try:
        manifest = _read(uri)
    except UnreadableRecord:
        manifest = None
    if manifest is None or manifest.digest != digest:
        manifest = _read_kept(root, digest)
    return Dataset(manifest, root) if manifest and manifest.digest == digest else None


def write_manifest(root: str, manifest: Manifest) -> None:
    """Commits the dataset. Its copy comes first, and that of the manifest it replaces, if a version
    before this one did not make it."""
    path, before = storage.join(root, MANIFEST), _read(root)
    if before is not None and not storage.exists(storage.join(root, kept_path(before.digest))):
        data = storage.read_bytes(path)  # as it is: version 1 has another form
        storage.write_bytes(storage.join(root, kept_path(before.digest)), data)
    for name in (kept_path(manifest.digest), MANIFEST):
        storage.write_bytes(storage.join(root, name), to_json(manifest))


def kept_manifests(root: str) -> Iterator[Manifest]:
    """The manifests of all states in which a dataset was finished."""
    for digest in kept_digests(root):
        manifest = _read_kept(root, digest)
        if manifest is not None:
            yield manifest


def kept_digests(root: str) -> list[str]:
    """Their digests, by name alone."""
    uris = (f"/{MANIFESTS}/{name}" for name in storage.names(storage.join(root, MANIFESTS), ""))
    return [kept[2] for uri in uris if (kept := _KEPT.fullmatch(uri))]


def _read(uri: str) -> Manifest | None:
    if kept := _KEPT.fullmatch(uri):
        return _read_kept(*kept.groups())
    path = storage.join(dataset_root(uri), MANIFEST)
    return read_record(path, Manifest, remedy=_REMEDY)


def _read_kept(root: str, digest: str) -> Manifest | None:
    path = storage.join(root, kept_path(digest))
    return read_record(path, Manifest, remedy=_REMEDY_OF_KEPT)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
