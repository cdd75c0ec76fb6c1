"""Measures how fast latents are read: our loader, webdataset, mosaicml-streaming and litdata.

Run as `python -m tests.benchmarks.loading [ENVIRONMENT]`. All read the same latents from the local
disk, shuffled, into batches of 16, in one process each, and alternate, so that other load on the
machine affects all alike. The last two need other versions of this project's dependencies and are
installed into a separate virtual environment, which is created if it does not exist.
Ours checks every shard's SHA-256 in its first epoch; the others check nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import Manifest, load_manifest
from datagen.dataset.records import CodecRecord, ShardRecord
from datagen.dataset.shards import ShardSample, write_latents
from datagen.records import to_json
from tests.support.shards import write_shard
from tests.support.tiny import dataset_recipe, write_photos

ROOT = Path(__file__).parents[2]
READERS = Path(__file__).with_name("loading_readers.py")
ENVIRONMENT = ROOT / ".venv-loaders"
OTHERS = {"streaming": "mosaicml-streaming>=0.13,<0.14", "litdata": "litdata>=0.2.76,<0.3"}
OURS = ("ours", "ours, one thread", "webdataset")
ROUNDS = 5
SHARD = 64


@dataclass(frozen=True)
class Kind:
    """A kind of stored sample: latents (C, h, w) of a bucket."""

    label: str
    codec: CodecRecord
    bucket: str
    latents: tuple[int, int, int]
    samples: int


KINDS = (
    Kind(
        "dct8, 128² pixels",
        CodecRecord(kind="dct8", fingerprint="", channels=192, downsample=8),
        "128x128",
        (192, 16, 16),
        1024,
    ),
    Kind(
        "VAE, 512² pixels",
        CodecRecord(kind="autoencoder_kl", fingerprint="", channels=4, downsample=8),
        "512x512",
        (4, 64, 64),
        3072,
    ),
)


def main() -> int:
    environment = Path(sys.argv[1]) if len(sys.argv) > 1 else ENVIRONMENT
    broken = {name: _installed(environment, name) for name in OTHERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_in_process(dataset_recipe(write_photos(folder / "photos", 1), folder / "model"))
        return max([_compare(kind, folder, environment, dict(broken)) for kind in KINDS])


def _installed(environment: Path, name: str) -> str | None:
    """Why another library cannot be used, or None."""
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    check = [str(python), str(READERS), f"check-{name}", "."]
    if subprocess.run(check, capture_output=True).returncode == 0:
        return None
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # The torchvision they install cannot be imported with a CPU build of torch.
    without = [*pip, "uninstall", "--yes", "torchvision"]
    for command in ([*pip, "install", OTHERS[name], "torch>=2.6,<2.14"], without, check):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
    return None


def _compare(kind: Kind, folder: Path, environment: Path, broken: dict[str, str | None]) -> int:
    dataset = folder / kind.bucket
    size = _write(kind, load_manifest(str(folder / "model")), dataset)
    for name in OTHERS:
        broken[name] = broken[name] or _copied(environment, name, dataset)
    names = [name for name in (*OURS, *OTHERS) if not broken.get(name)]
    speeds: dict[str, list[list[float]]] = {name: [] for name in names}
    costs: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            python = environment / "bin" / "python" if name in OTHERS else Path(sys.executable)
            epochs = _read(python, name, dataset)
            speeds[name].append([one["samples"] / one["wall"] for one in epochs])
            costs[name].append(1000 * epochs[-1]["cpu"] / epochs[-1]["samples"])
    print(f"\n{kind.label}: {size / 1000:.0f} KB a sample, {kind.samples} samples\n")
    print("| reader | first epoch, samples/s | later epochs | ours over it | CPU ms a sample |")
    print("|---|---|---|---|---|")
    ratios = {
        name: statistics.median(a[1] / b[1] for a, b in zip(speeds["ours"], others, strict=True))
        for name, others in speeds.items()
    }
    for name, ratio in ratios.items():
        first, later = (statistics.median(column) for column in zip(*speeds[name], strict=True))
        cost = statistics.median(costs[name])
        print(f"| {name} | {first:.0f} | {later:.0f} | {ratio:.2f} | {cost:.2f} |")
    for name in OTHERS:
        if broken[name]:
            print(f"| {name} | not measured: {broken[name]} | | | |")
    faster = [name for name, ratio in ratios.items() if ratio < 1 and not name.startswith("ours")]
    print(f"\nFaster than ours in later epochs: {', '.join(faster) or 'none'}", flush=True)
    return 1 if faster else 0


def _write(kind: Kind, model: Manifest, dataset: Path) -> float:
    """Shards of random latents, and a manifest that fits; bytes of a sample."""
    rng = np.random.default_rng(0)
    records = []
    for first in range(0, kind.samples, SHARD):
        path = f"shards/{kind.bucket}/train-{first // SHARD:06d}.tar"
        samples = []
        for number in range(first, first + SHARD):
            hq, lq, neg = rng.standard_normal((3, *kind.latents), np.float32).astype(np.float16)
            latents = write_latents({"hq": hq, "lq": lq, "neg": neg})
            samples.append(ShardSample(f"{number:020x}-00", latents, b"{}", None))
        written = write_shard(str(dataset / path), samples)
        records.append(ShardRecord(path=path, bucket=kind.bucket, split="train", **vars(written)))
    manifest = model.model_copy(
        update={"shards": tuple(records), "num_samples": kind.samples, "codec": kind.codec}
    )
    (dataset / "manifest.json").write_bytes(to_json(manifest))
    return sum(record.bytes for record in records) / kind.samples


def _copied(environment: Path, name: str, dataset: Path) -> str | None:
    """Writes the latents in another library's format; the error, or None."""
    command = [str(environment / "bin" / "python"), str(READERS), f"write-{name}", str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, env=_quiet())
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def _read(python: Path, name: str, dataset: Path) -> list[dict[str, float]]:
    module = ["-m", "tests.benchmarks.loading_readers"] if name in OURS else [str(READERS)]
    done = subprocess.run(
        [str(python), *module, name, str(dataset)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=_quiet(),
        cwd=ROOT,
    )
    epochs: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return epochs


def _quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


if __name__ == "__main__":
    sys.exit(main())
