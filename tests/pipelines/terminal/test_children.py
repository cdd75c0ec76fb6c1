"""The watcher that ends a command's children with it."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest

from pipelines.terminal import children


def test_the_end_of_a_command_is_noticed_soon_where_a_look_at_its_children_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent, looks = [os.getppid()], []

    def look(process: psutil.Process, recursive: bool) -> list[psutil.Process]:
        looks.append(process.pid)
        time.sleep(0.2)  # after which looks are 20 seconds apart
        return []

    monkeypatch.setattr(psutil.Process, "children", look)
    monkeypatch.setattr(children.os, "getppid", lambda: parent[0])
    watcher = threading.Thread(target=children._watch, args=(parent[0],), daemon=True)
    watcher.start()
    watcher.join(timeout=1)
    assert watcher.is_alive() and looks == [parent[0]]
    parent[0] = 1  # as an orphan's is
    watcher.join(timeout=3 * children.SECONDS)
    assert not watcher.is_alive()
