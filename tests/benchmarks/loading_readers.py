"""One reader in one process over the same latents: `loading_readers.py READER FOLDER`.

Prints as JSON the seconds of each epoch. Run by `tests.benchmarks.loading`, partly in an
environment that has none of this project's packages: what a reader needs is imported inside it.
`FOLDER` holds the latents as shards of this project; `streaming` and `litdata` get copies in their
own formats with `write-streaming FOLDER` and `write-litdata FOLDER`.
"""

from __future__ import annotations

import json
import sys
import tarfile
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

BATCH = 16
NAMES = ("hq", "lq", "neg")
Epoch = Callable[[], Iterator[Any]]
"""Gives one epoch's batches; each holds hq, lq, neg, float16 (B, C, h, w)."""


def ours(folder: Path, *, threads: int) -> Epoch:
    from datagen.dataset.manifest import load_manifest
    from training.data.bucket_mix import bucket_sizes, proportional_shares
    from training.data.loader import BatchLoader, BatchReader, Source
    from training.data.planned import Position
    from training.data.schedule import Schedule
    from training.data.shard_store import ShardStore
    from training.settings.batch_fields import BatchFields
    from training.settings.stage import BatchSize

    manifest = load_manifest(str(folder))
    draws = proportional_shares(bucket_sizes(manifest, "train"), BatchSize(BATCH, BATCH))
    schedule = Schedule([manifest], draws, seed=0, shuffle_window_shards=8, split="train")
    fields = BatchFields(("hq", "lq", "neg"))
    reader = BatchReader([Source(ShardStore(str(folder)))], schedule, manifest.codec, fields=fields)
    loader = BatchLoader(reader, rank=0, world_size=1, threads=threads)
    batches = loader.batches(Position())

    def epoch() -> Iterator[Any]:
        for _ in range(manifest.num_samples // BATCH):
            batch = next(batches)
            yield batch.hq, batch.lq, batch.latents["neg"]

    return epoch


def webdataset(folder: Path) -> Epoch:
    import safetensors.torch
    import torch
    from webdataset import WebDataset

    def decoded(sample: dict[str, bytes]) -> tuple[torch.Tensor, ...]:
        tensors = safetensors.torch.load(sample["latents.safetensors"])
        return tuple(tensors[name] for name in NAMES)

    def stacked(samples: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))

    shards = sorted(map(str, folder.rglob("*.tar")))
    dataset = WebDataset(shards, shardshuffle=100, seed=0).shuffle(1000).map(decoded)
    batches = dataset.batched(BATCH, collation_fn=stacked, partial=False)
    return lambda: iter(batches)


def without_torchvision() -> None:
    """Makes `streaming` importable: it imports torchvision, which is not needed here and which
    PyPI does not have for a CPU build of torch."""
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms.functional")
    for name in (*names, "torchvision.transforms"):
        module: Any = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.VisionDataset = module.CIFAR10 = module.to_tensor = object
        sys.modules[name] = module


def streaming(folder: Path) -> Epoch:
    without_torchvision()
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    dataset = StreamingDataset(
        local=str(folder / "streaming"), shuffle=True, batch_size=BATCH, shuffle_seed=0
    )
    batches = DataLoader(dataset, batch_size=BATCH, num_workers=0)
    return lambda: iter(batches)


def litdata(folder: Path) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(folder / "litdata"), shuffle=True, seed=0)
    batches = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
    return lambda: iter(batches)


def stored(folder: Path) -> Iterator[dict[str, Any]]:
    """The samples of all shards as arrays."""
    import safetensors.numpy

    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".safetensors"):
                    content = tar.extractfile(member)
                    assert content is not None
                    yield safetensors.numpy.load(content.read())


def write_streaming(folder: Path) -> None:
    without_torchvision()
    from streaming import MDSWriter

    first = next(stored(folder))
    shape = ",".join(map(str, first["hq"].shape))
    columns = {name: f"ndarray:float16:{shape}" for name in NAMES}
    with MDSWriter(out=str(folder / "streaming"), columns=columns, size_limit=1 << 26) as writer:
        for sample in stored(folder):
            writer.write({name: sample[name] for name in NAMES})


def as_tensors(number: int, *, folder: str) -> dict[str, Any]:
    import torch

    sample = _all_stored(folder)[number]
    return {name: torch.from_numpy(sample[name]) for name in NAMES}


def _all_stored(folder: str, _kept: dict[str, Any] = {}) -> list[dict[str, Any]]:  # noqa: B006
    if folder not in _kept:
        _kept[folder] = list(stored(Path(folder)))
    samples: list[dict[str, Any]] = _kept[folder]
    return samples


def write_litdata(folder: Path) -> None:
    from litdata import optimize

    optimize(
        fn=partial(as_tensors, folder=str(folder)),
        inputs=list(range(sum(1 for _ in stored(folder)))),
        output_dir=str(folder / "litdata"),
        chunk_bytes="64MB",
        num_workers=1,
    )


READERS: dict[str, Callable[[Path], Epoch]] = {
    "ours": partial(ours, threads=2),
    "ours, one thread": partial(ours, threads=1),
    "webdataset": webdataset,
    "streaming": streaming,
    "litdata": litdata,
}


def measure(epoch: Epoch) -> dict[str, float]:
    """Samples, wall and CPU seconds of one epoch."""
    wall, cpu, samples = time.perf_counter(), time.process_time(), 0
    for batch in epoch():
        parts = [batch[name] for name in NAMES] if isinstance(batch, dict) else batch
        assert all(part.dtype.itemsize == 2 and part.shape == parts[0].shape for part in parts)
        samples += len(parts[0])
    return {
        "samples": samples,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    writers = {"write-streaming": write_streaming, "write-litdata": write_litdata}
    if what in writers:
        return writers[what](folder)
    if what.startswith("check-"):
        without_torchvision()
        import_module(what.removeprefix("check-"))
        return
    import torch

    torch.set_num_threads(1)
    epoch = READERS[what](folder)
    print(json.dumps([measure(epoch) for _ in range(2)]))


if __name__ == "__main__":
    main()
