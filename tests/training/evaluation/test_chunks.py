"""Chunks of an evaluation as files: together what one process finds; damage is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage import data

from datagen.photos.source_file import SourceFile
from training.evaluation.benchmark import in_order
from training.evaluation.chunks import ChunkRecord, read_chunk, write_chunk
from training.evaluation.cost import Cost
from training.evaluation.measure import Method, measure_all, measure_original
from training.evaluation.metrics.catalog import find_metrics
from training.evaluation.metrics.distributions import kernel_distance
from training.evaluation.metrics.metric import Metrics, NotMeasurable, SetMetric
from training.evaluation.photo_list import PhotoFile
from training.evaluation.photos import DegradedPhoto
from training.evaluation.scores import score, summarize
from training.evaluation.variants import told_apart
from training.settings.evaluation import PRESETS


def colors(picture: np.ndarray) -> np.ndarray:
    """Two features of a picture, each the mean of a half."""
    if picture.shape[0] < 40:
        raise NotMeasurable("smaller than 40 pixels")
    halves = np.array_split(picture.astype(np.float64), 2)
    return np.stack([half.mean(axis=(0, 1)) for half in halves])


METRICS = Metrics(
    find_metrics((), PRESETS["plain"]).of_pictures,
    (SetMetric("kid_colors", "lower", "colors", colors, kernel_distance),),
)
METHODS = [
    Method("dark", 0, lambda photo: photo.original // 2),
    Method("same", 2, lambda photo: photo.original, Cost(7, 1.5), lora_scale=2.0),
]


def photo(number: int) -> DegradedPhoto:
    side = 30 if number == 3 else 60
    original = data.chelsea()[20 * number :, 100:][:side, :side]
    return DegradedPhoto(f"{number}.png", original, original[::2, ::2])


def test_files_of_chunks_in_any_order_give_the_table_of_one_process(tmp_path: Path) -> None:
    photos = [photo(number) for number in range(5)]
    expected = score(photos, METHODS, 2.0, METRICS)
    parts = {
        f"{tmp_path}/{name}.json": found
        for name, found in (
            ("b", list(measure_all(METHODS, photos[3:], 2.0, METRICS))),
            ("a", list(measure_all(METHODS, photos[:3], 2.0, METRICS))),
            ("c", [measure_original(each, 2.0, METRICS) for each in photos]),
        )
    }
    for path, found in parts.items():
        write_chunk(path, ChunkRecord(measured=tuple(one.measured for one in found)), found)
    read = [chunk[1] for path in parts if (chunk := read_chunk(path)) is not None]
    files = [PhotoFile(one.name, 2.0, SourceFile(one.name, 1, "")) for one in photos]
    every = in_order([one for chunk in read for one in chunk], files, 2.0)
    costs = {("same", 2): Cost(7, 1.5)}
    found = summarize(every, 2.0, METRICS, costs)
    assert found.pictures == expected.pictures and found.notes == expected.notes
    assert [row.values for row in found.rows] == [row.values for row in expected.rows]
    assert found.rows[0].values["kid_colors"] > 100 > found.rows[1].values["kid_colors"]
    assert (found.rows[1].gflop, found.rows[1].lora_scale) == (1.5, 2.0)
    assert found.notes == ("kid_colors at x2: 3.png: smaller than 40 pixels",)


@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_a_damaged_chunk_is_measured_again(tmp_path: Path, name: str) -> None:
    found = [measure_original(photo(0), 2.0, METRICS)]
    path = f"{tmp_path}/a.json"
    assert read_chunk(path) is None
    write_chunk(path, ChunkRecord(measured=(found[0].measured,)), found)
    assert read_chunk(path) is not None
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    assert read_chunk(path) is None


def test_models_are_named_by_what_their_folders_do_not_share() -> None:
    assert told_apart(["/data/w2/run", "/data/w3/run"]) == ["w2", "w3"]
    assert told_apart(["/data/a", "/data/b"]) == ["a", "b"]
    assert told_apart(["/a/run", "/data/b"]) == ["a", "b"]
    assert told_apart(["/a/x/run", "/a/x"]) == ["x", "x"]  # which is refused
    assert told_apart(["/run", "/a/run"]) == ["run", "a"]
