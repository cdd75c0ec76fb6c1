"""A real disk of a few megabytes that fills up, where this process may mount one."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

DiskMaker = Callable[[int], Path]
PAGE = 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[DiskMaker]:
    """`small_disk(bytes)` mounts an empty disk of that size for the length of the test."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        words = ("mount", "-t", "tmpfs", "-o", f"size={size}", "flowmapsr-test", str(folder))
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount to make a small disk with")
        if done.returncode:
            pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """Another writer fills the disk for the block, also with bytes that others release."""
    ballast, ended = disk / "ballast", threading.Event()

    def fill() -> None:
        with ballast.open("ab", buffering=0) as file:
            while not ended.wait(0.005):
                with contextlib.suppress(OSError):
                    while file.write(bytes(PAGE)):
                        pass

    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(PAGE)):
            pass
    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        ballast.unlink()


@pytest.fixture
def filled() -> Callable[[Path], AbstractContextManager[None]]:
    """`with filled(disk):` leaves no free byte on it."""
    return _filled
