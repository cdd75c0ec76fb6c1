"""Chromium without a window, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

from tests.support.eventually import eventually
from tests.support.processes import kill_tree

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


class Browser:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)

    def resize(self, width: int, height: int) -> None:
        """To a screen of another size, such as a phone's."""
        screen = {"deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, **screen)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def text(self) -> str:
        """What is shown, with single spaces."""
        return " ".join(str(self.evaluate("document.body.innerText")).split())

    def wait_for(self, *texts: str, seconds: float = 60) -> str:
        """The text shown, once it has all of these.

        Raises:
            AssertionError: naming those that are missing.
        """
        deadline = time.monotonic() + seconds
        while missing := [text for text in texts if text not in (shown := self.text())]:
            assert time.monotonic() < deadline, f"{missing} not in: {shown}"
            time.sleep(0.1)
        return self.text()

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])


@contextmanager
def browser(folder: Path, *, width: int = 1600, height: int = 1000) -> Iterator[Browser]:
    """A new browser, whose profile is in the folder."""
    assert CHROMIUM is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [CHROMIUM, *words, f"--user-data-dir={folder}", f"--window-size={width},{height}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = folder / "DevToolsActivePort"
        eventually(lambda: port.is_file() and "\n" in port.read_text(), process)
        with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list") as answer:
            tab = next(one for one in json.load(answer) if one["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Browser(socket)
    finally:
        kill_tree(process)
