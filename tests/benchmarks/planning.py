"""Seconds and memory of planning a million photos that exist by name only.

Run as `python -m tests.benchmarks.planning [COUNT]`. Listing and headers are generated,
so everything else is measured: comparing, grouping, cutting into tasks, writing the plan,
and reading it again as a resumed build does.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datagen.build.plan import make_plan
from datagen.build.survey import Survey
from datagen.dataset.known_photos import KnownPhotos
from datagen.dataset.layout import PLAN
from datagen.dataset.tasks import Plan
from datagen.io import storage
from datagen.photos.scan import ScannedPhoto
from datagen.photos.source_file import SourceFile
from datagen.photos.sources import Listing
from datagen.records import read_record, to_compact_json
from datagen.settings import BucketSettings, DatasetRecipe, PixelBudget

COUNT = 1_000_000
SIZES = [(6000, 4000), (4032, 3024), (3024, 4032), (2048, 1365), (1920, 1080), (1200, 1600)]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    print(f"\nPlanning {count:,} photos, three pixel budgets, 256 samples a shard\n")
    print("| step | seconds | peak memory so far, GB |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(folder)
        found = _timed("list (made up)", _survey, recipe, count)
        plan = _timed("plan", lambda found: make_plan(found, map_chunks=_made_up_headers), found)
        assert sum(len(task.photos) for task in plan.tasks) == count
        uri, tasks = storage.join(folder, PLAN), len(plan.tasks)
        _timed(
            "write plan.json", lambda plan: storage.write_bytes(uri, to_compact_json(plan)), plan
        )
        size = Path(uri).stat().st_size
        del found, plan
        again: Plan = _timed("read plan.json", partial(read_record, uri, Plan, remedy=""))
        assert len(again.tasks) == tasks
    print(f"\n{tasks:,} tasks, plan.json {size / 1e6:.0f} MB")


def _timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
    start = time.perf_counter()
    result = work(*arguments)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {name} | {seconds:.1f} | {peak:.2f} |", flush=True)
    return result


def _recipe(folder: str) -> DatasetRecipe:
    budgets = tuple(PixelBudget(side=side) for side in (512, 768, 1024))
    return DatasetRecipe(
        sources=("s3://photos/all",), output=folder, buckets=BucketSettings(budgets=budgets)
    )


def _survey(recipe: DatasetRecipe, count: int) -> Survey:
    files = tuple(
        SourceFile(
            f"s3://photos/all/{index % 1000:03d}/photo-{index:09d}.jpg",
            bytes=1_000_000 + index * 7919 % 3_000_000,
            stamp=hashlib.md5(index.to_bytes(8, "big")).hexdigest(),
        )
        for index in range(count)
    )
    return Survey(
        recipe=recipe,
        manifest=None,
        base=None,
        open_plan=None,
        finished={},
        cleanup_pending=False,
        known=KnownPhotos(),
        listing=Listing(files, ()),
        new=files,
        changed=frozenset(),
        missing=frozenset(),
    )


def _made_up_headers(
    function: Callable[[Sequence[Any]], list[Any]], chunks: Iterable[Sequence[Any]]
) -> Iterator[list[Any]]:
    """Replaces reading them: every photo has a different header, so none is hashed."""
    for chunk in chunks:
        yield [_made_up(file) for file in chunk]


def _made_up(file: SourceFile) -> ScannedPhoto:
    number = int(file.stamp[:8], 16)
    width, height = SIZES[number % len(SIZES)]
    return ScannedPhoto(file, width - number % 97, height, bytes.fromhex(file.stamp))


if __name__ == "__main__":
    main()
