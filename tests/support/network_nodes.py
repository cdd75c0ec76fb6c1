"""Simulated machines in a separate network: network namespaces joined by a bridge.

Each has its own loopback and one address; they share the disk and the CPUs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUBNET = "10.231.7"


@dataclass(frozen=True)
class Node:
    """One machine."""

    namespace: str
    address: str

    def command(self, *words: str) -> list[str]:
        """`words` as run on this machine."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def start(
        self, *words: str, log: Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                self.command(*words),
                env={**os.environ, **(env or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL to everything on it: the machine is gone."""
        for pid in _output("ip", "netns", "pids", self.namespace).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue


def missing() -> str:
    """Why no such machines can be created here, or an empty string."""
    if shutil.which("ip") is None:
        return "there is no `ip` command (iproute2)"
    probe = f"fm-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    linked = subprocess.run(
        ["ip", "-n", probe, "link", "add", "br0", "type", "bridge"], capture_output=True, text=True
    )
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return f"no bridge can be made: {linked.stderr.strip()}" if linked.returncode else ""


@contextmanager
def network(count: int) -> Iterator[list[Node]]:
    """`count` machines that reach each other, and nothing else; all are killed at the end."""
    prefix = f"fm-{uuid.uuid4().hex[:6]}"
    switch = f"{prefix}-sw"
    nodes = [Node(f"{prefix}-{i}", f"{SUBNET}.{i + 1}") for i in range(count)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for index, node in enumerate(nodes):
            _plug_in(node, switch, port=f"p{index}")
        yield nodes
    finally:
        for node in nodes:
            node.kill()
        for name in (*(node.namespace for node in nodes), switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _plug_in(node: Node, switch: str, *, port: str) -> None:
    _ip("netns", "add", node.namespace)
    _ip("-n", node.namespace, "link", "set", "lo", "up")
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "eth0", "netns", node.namespace)
    _ip("-n", switch, "link", "set", port, "master", "br0", "up")
    _ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", "eth0")
    _ip("-n", node.namespace, "link", "set", "eth0", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout
