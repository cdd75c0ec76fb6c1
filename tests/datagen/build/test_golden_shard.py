"""A tiny dataset is the one in `tests/golden/tiny_shard.json`: its draws, pixels and bytes.

Draws are exact on every machine. The last bits of a matrix product depend on the processor and on
the libraries, so bytes are compared only where these are the golden file's, and pixels everywhere
with a tolerance. After a change that is meant to change the data, write the file again with

    python -m tests.datagen.build.test_golden_shard
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample, stored_latents
from datagen.samples.codecs import DctCodec, decode_latents
from datagen.settings import DatasetRecipe

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny_shard.json"
AGAIN = (
    "; if this change is meant, write the golden file again with "
    "`python -m tests.datagen.build.test_golden_shard`, and say so in the changelog"
)
LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "torch", "safetensors")
STRIDE = 8
"""Every 8th pixel of every 8th row is kept."""
LEVELS, OUTLIERS = 2, 0.01
"""Pixels may differ by 2 of 255 levels, and one in a hundred by more: a value that is rounded the
other way before the JPEG changes its block."""

KINDS = {"skipped", "blur", "sinc", "resize", "downscale", "gaussian_noise", "poisson_noise"}
KINDS |= {"mask", "jpeg", "resize_back"}
OPERATIONS: list[dict[str, Any]] = [
    {"kind": "blur", "sinc_probability": 0.2},
    {
        "kind": "either",
        "chains": [
            {"operations": [{"kind": "resize"}, {"kind": "sinc", "probability": 0.7}]},
            {"operations": [{"kind": "mask", "fraction": [0.05, 0.2]}]},
        ],
    },
    {"kind": "downscale"},
    {"kind": "noise", "probability": 0.9},
    {"kind": "jpeg"},
    {"kind": "resize_back", "modes": ["area", "bilinear", "bicubic", "bicubic_antialiased"]},
    {"kind": "blur", "probability": 0.5, "sigma": [0.2, 1.0]},
]


def _ppm(seed: int, width: int, height: int) -> bytes:
    """Blocks of one color, a ramp and texture, in a file without compression: no library's version
    changes its bytes, and so its key."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 160, (5, 6, 3)).repeat(height // 5 + 1, 0).repeat(width // 6 + 1, 1)
    y, x = np.mgrid[:height, :width, :1][:2]
    pixels = blocks[:height, :width] + (x + y) // 4 + rng.integers(0, 40, (height, width, 1))
    return b"P6 %d %d 255\n" % (width, height) + pixels.astype(np.uint8).tobytes()


def _build(folder: Path) -> dict[str, Any]:
    """Builds the dataset in `folder`; everything the golden file holds."""
    (folder / "photos").mkdir()
    for seed, (width, height) in enumerate([(96, 80), (80, 112), (128, 70)]):
        (folder / "photos" / f"{seed}.ppm").write_bytes(_ppm(seed, width, height))
    with contextlib.chdir(folder):  # a sample's record names its photo
        recipe = DatasetRecipe.model_validate(
            {
                "sources": ["photos"],
                "output": "dataset",
                "seed": 5,
                "buckets": {"budgets": [{"side": 64}], "step": 16},
                "augmentation": {"rotate90_probability": 0.5},
                "samples_per_photo": 4,
                "validation_fraction": 0.4,
                "samples_per_shard": 8,
                "degradation": {"scale": [1, 4], "operations": OPERATIONS},
            }
        )
        shards = {record.path: record for record in build_in_process(recipe).shards}
        samples = [sample for path in shards for sample in read_shard(f"dataset/{path}")]
        assert {record.path for record in load_manifest("dataset").shards} == set(shards)
    drawn = [json.loads(sample.meta) for sample in samples]
    assert {
        operation["kind"]
        for one in drawn
        for lq in ("lq", "neg")
        for operation in one[lq]["operations"]
    } == KINDS
    return {
        "made_with": _made_with(),
        "shards": {path: record.sha256 for path, record in shards.items()},
        "drawn": {sample.key: hashlib.sha256(sample.meta).hexdigest() for sample in samples},
        "pixels": {sample.key: _pixels(sample) for sample in samples},
    }


def _made_with() -> dict[str, str]:
    """Processor and libraries that the bytes of a shard depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    names = ("vendor_id", "cpu family", "model")
    processor = " ".join([platform.machine(), *(facts.get(name, "") for name in names)])
    return {"processor": processor, **{name: version(name) for name in LIBRARIES}}


def _pixels(sample: ShardSample) -> dict[str, str]:
    """Some of each picture's pixels as decoded, RGB in hexadecimal digits."""
    images = decode_latents(DctCodec(), stored_latents(sample))
    return {
        name: pixels[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].tobytes().hex()
        for name, pixels in images.items()
    }


def _levels(digits: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digits), np.uint8).astype(int)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _build(tmp_path_factory.mktemp("golden"))


def test_the_draws_are_golden(built: dict[str, Any], golden: dict[str, Any]) -> None:
    assert list(built["shards"]) == list(golden["shards"]), "other shards" + AGAIN
    assert list(built["drawn"]) == list(golden["drawn"]), (
        "other samples, or in another order" + AGAIN
    )
    changed = [key for key, digest in built["drawn"].items() if digest != golden["drawn"][key]]
    assert not changed, f"other parameters were drawn for {', '.join(changed)}{AGAIN}"


def test_the_pixels_are_golden(built: dict[str, Any], golden: dict[str, Any]) -> None:
    for key, pictures in golden["pixels"].items():
        for name, digits in pictures.items():
            off = np.abs(_levels(built["pixels"][key][name]) - _levels(digits))
            assert np.mean(off > LEVELS) <= OUTLIERS, (
                f"{key} {name}: {np.mean(off > LEVELS):.0%} of the pixels differ by more than "
                f"{LEVELS} levels, at most by {off.max()}; the file was made with "
                f"{golden['made_with']}, this is {built['made_with']}{AGAIN}"
            )


def test_the_bytes_are_golden(built: dict[str, Any], golden: dict[str, Any]) -> None:
    if built["made_with"] != golden["made_with"]:
        pytest.skip(f"bytes are promised for {golden['made_with']}, this is {built['made_with']}")
    assert built["shards"] == golden["shards"], "shards have other bytes" + AGAIN


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(_build(Path(folder)), indent=1) + "\n")
