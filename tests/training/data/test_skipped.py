"""The list of skipped samples: each once, a shard as all its samples, and the limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from training.data.skipped import SkippedList, SkippedSample


def _sample(shard: str, index: int | None, samples: int = 1) -> SkippedSample:
    key = None if index is None else f"key-{index}"
    return SkippedSample(shard=shard, index=index, key=key, samples=samples, reason="it is broken")


def test_each_is_counted_once_and_a_shard_as_all_its_samples(tmp_path: Path) -> None:
    skipped = SkippedList(tmp_path / "skipped.jsonl", training_samples=100, limit=0.5)
    skipped.add([_sample("a", 1), _sample("a", 1), _sample("b", 0)], write=True)
    assert skipped.samples == 2 and skipped.new_ones([_sample("a", 1)]) == []
    skipped.add([_sample("a", None, samples=8), _sample("b", 0)], write=True)
    assert skipped.samples == 9  # sample 1 of a is one of the eight
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    listed = [SkippedSample.model_validate_json(line) for line in lines]
    assert listed == [_sample("a", 1), _sample("b", 0), _sample("a", None, samples=8)]


def test_one_more_than_the_limit_is_an_error_that_names_it(tmp_path: Path) -> None:
    skipped = SkippedList(tmp_path / "skipped.jsonl", training_samples=100, limit=0.02)
    skipped.add([_sample("a", 1), _sample("a", 2)], write=False)
    assert list(tmp_path.iterdir()) == []
    message = "3 of 100 training samples .*allows 0.02.*sample key-3 of a: it is broken.*restore"
    with pytest.raises(FlowmapsrError, match=message):
        skipped.add([_sample("a", 3)], write=True)
    assert (tmp_path / "skipped.jsonl").exists()
    with pytest.raises(FlowmapsrError, match="all 8 samples of c: it is broken"):
        skipped.add([_sample("c", None, samples=8)], write=True)


def test_another_start_counts_from_zero_and_keeps_the_list(tmp_path: Path) -> None:
    for index in (1, 2, 1):
        skipped = SkippedList(tmp_path / "skipped.jsonl", training_samples=100, limit=0.01)
        skipped.add([_sample("a", index)], write=True)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 2
