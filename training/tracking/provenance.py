"""Code, library versions and launch command as MLflow tags, so that a run can be repeated."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE, LIBRARIES = "flowmapsr", ("torch", "deepspeed", "diffusers", "ray", "mlflow")
GIT_SECONDS, MAX_COMMAND = 10.0, 2000
LAUNCHED = "FLOWMAPSR_LAUNCHED"
"""Environment variable that passes the result of `launched` to the workers."""


@cache
def code_tags() -> dict[str, str]:
    """Commit of the code and whether it was changed, in a checkout; versions of the package and its
    libraries."""
    versions = {name: _version(name) for name in LIBRARIES}
    tags = {
        "code.version": _version(PACKAGE) or "not installed",
        "version.python": platform.python_version(),
        **{f"version.{name}": found for name, found in versions.items() if found},
    }
    # None for code that only lies in a folder inside another project's checkout.
    tracked = _git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
    commit = None if tracked is None else _git("rev-parse", "HEAD")
    if commit:
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
        tags |= {"code.commit": commit, "code.dirty": str(dirty).lower()}
        tags["mlflow.source.git.commit"] = commit
    return tags


def launched() -> str:
    """The command and the user who gave it, as JSON for `LAUNCHED`."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:MAX_COMMAND]
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return json.dumps({"command": command, "user": user})


def launch_tags() -> dict[str, str]:
    """`launched` of this process, or of the one that started this worker, as MLflow tags."""
    launch = json.loads(os.environ.get(LAUNCHED) or launched())
    # MLflow's page shows only what follows the last slash.
    words = [Path(word).name for word in launch["command"].split() if "=" not in word]
    return {
        "command": launch["command"],
        "mlflow.source.name": " ".join(words),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": launch["user"],
    }


def processor_name() -> str:
    """From /proc/cpuinfo; the machine type where that has none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """What git prints in the code's folder; None where there is no git or no checkout."""
    command, folder = ["git", *words], Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
