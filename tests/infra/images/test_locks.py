"""The image's locks hold what pyproject.toml asks for, at the versions of constraints.txt."""

from __future__ import annotations

import re
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "infra/images"
ENTRY = re.compile(
    r"^([a-z0-9.-]+)==(\S+)(?: ;[^\\\n]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", re.M
)


def locked(path: Path) -> dict[str, str]:
    """Version by package; every line but comments must be part of an entry with hashes."""
    text = path.read_text()
    entries = list(ENTRY.finditer(text))
    rest = re.sub(r"^#.*\n", "", ENTRY.sub("", text), flags=re.M)
    assert rest == "", f"{path.name}: not an entry with hashes: {rest[:200]}"
    return {entry[1]: entry[2] for entry in entries}


def test_locks_agree_with_constraints_and_pyproject() -> None:
    most, cuda = locked(IMAGES / "requirements.lock"), locked(IMAGES / "torch-cuda.lock")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert not {name: version for name, version in most.items() if pinned.get(name) != version}
    assert cuda["torch"] == pinned["torch"] and not (cuda.keys() - {"torch"}) & pinned.keys()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["heic"], *extras["servers"]]:
        wanted = Requirement(text)
        version = {**most, **cuda}.get(wanted.name, "")
        assert version and wanted.specifier.contains(version), f"{text} is not locked: make lock"


def test_locks_hold_what_their_packages_need() -> None:
    locks = locked(IMAGES / "requirements.lock") | locked(IMAGES / "torch-cuda.lock")
    for name in locks:
        with suppress(PackageNotFoundError):  # of the extra `servers`, which tests do without
            for text in requires(name) or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                    assert canonicalize_name(needed.name) in locks, f"{name} needs {text}"
