"""A build that dies between two changes of its output ends, when run again, as if it had not."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datagen.build.in_process import build_in_process
from datagen.io import local
from datagen.io.lock import is_lock
from datagen.review.verify import verify_dataset
from datagen.settings import DatasetRecipe
from tests.support.files import digests

RecipeMaker = Callable[..., DatasetRecipe]
CHANGES = ("open_atomic", "delete", "delete_empty_folder")
"""The functions of `local` that change a dataset; all others call these."""


class Died(BaseException):
    """In place of a kill, which a test could not survive."""


@contextmanager
def _dying_before(change: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the block before it makes the change with this number, counted from 0."""
    numbers = itertools.count()

    def count(path: str) -> None:
        if not is_lock(path) and next(numbers) == change:
            raise Died

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: str, *arguments: Any) -> Any:
            count(path)
            return function(path, *arguments)

        return call

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(local, name, counted(getattr(local, name)))
        yield


def _interrupted_everywhere(
    build: Callable[[], object],
    root: Path,
    start: Path | None,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Builds once for each change, dying before it, and again to the end; returns how often."""
    expected = None
    for change in itertools.count():
        shutil.rmtree(root, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, root)
        try:
            with _dying_before(change, monkeypatch):
                build()
        except Died:
            build()
            assert verify_dataset(str(root)) == [], f"died before change {change}"
            found = digests(root)
            expected = expected or found
            assert found == expected, f"died before change {change}"
            continue
        assert digests(root) == expected  # of the build that nothing disturbed
        return change
    raise AssertionError("unreachable")


def test_a_build_and_an_extension_survive_an_end_before_each_of_their_changes(
    recipe: RecipeMaker, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing takes most of the time of so small a build.
    for name in ("render_preview", "render_histograms"):
        monkeypatch.setattr(f"datagen.build.finish.{name}", lambda *_: b"a picture")
    asked = recipe(samples_per_photo=1)
    root, later = Path(asked.output), tmp_path / "later"
    later.mkdir()
    for number in range(6, 9):
        (photos / f"p{number}.png").rename(later / f"p{number}.png")
    changes = _interrupted_everywhere(lambda: build_in_process(asked), root, None, monkeypatch)
    assert changes > 12
    shutil.copytree(root, tmp_path / "first")
    for path in later.iterdir():
        path.rename(photos / path.name)
    first = tmp_path / "first"
    changes = _interrupted_everywhere(lambda: build_in_process(asked), root, first, monkeypatch)
    assert changes > 8
    assert len(list((root / "manifests").iterdir())) == 2
