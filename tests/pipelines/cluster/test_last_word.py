"""The reason for which a run ends: kept though the disk is full, told by the first worker only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from datagen.errors import FlowmapsrError
from pipelines.cluster.fatal_error import BYTES, LastWord
from tests.support.small_disk import DiskMaker


def test_the_first_word_is_heard_though_the_disk_is_full(
    small_disk: DiskMaker, filled: Callable[[Path], AbstractContextManager[None]]
) -> None:
    run = small_disk(1 << 16)
    driver, first, second = (LastWord(run) for _ in range(3))
    with filled(run), pytest.raises(FlowmapsrError, match="No space left on device"):
        driver.begin()
    driver.begin()
    assert driver.told() == ""
    with filled(run):
        first.tell("the disk is full " + "ü" * BYTES)
        second.tell("collateral")
    assert driver.told().startswith("the disk is full üü") and "collateral" not in driver.told()
    driver.end()
    assert second.told() == driver.told()
    driver.begin()
    assert second.told() == ""
    driver.end()
    assert list(run.iterdir()) == []
