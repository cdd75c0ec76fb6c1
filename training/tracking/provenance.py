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

PACKAGE = "flowmapsr"
LIBRARIES = ("torch", "deepspeed", "diffusers", "ray", "mlflow")
GIT_SECONDS = 10.0
MAX_COMMAND = 2000
LAUNCHED = "FLOWMAPSR_LAUNCHED"
"""Environment variable that passes the result of `launched` to the workers."""


@cache
def code_tags() -> dict[str, str]:
    """Commit of the code and whether it was changed, in a checkout; versions of the package and its
    libraries."""
    tags = {"code.version": _version(PACKAGE) or "not installed"}
    commit = _git("rev-parse", "HEAD") if _is_tracked() else None
    if commit:
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
        tags |= {
            "code.commit": commit,
            "code.dirty": str(dirty).lower(),
            "mlflow.source.git.commit": commit,
        }
    tags |= {f"version.{name}": found for name in LIBRARIES if (found := _version(name))}
    tags["version.python"] = platform.python_version()
    return tags


def launched() -> str:
    """The command and the user who gave it, as JSON for `LAUNCHED`."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return json.dumps({"command": " ".join(words)[:MAX_COMMAND], "user": _user()})


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


def host_name() -> str:
    return platform.node()


def processor_name() -> str:
    """From /proc/cpuinfo; the machine type where that has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_tracked() -> bool:
    """Whether this file belongs to a checkout, not just a folder inside another project's."""
    return _git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is not None


def _git(*words: str) -> str | None:
    """What git prints in the code's folder; None where there is no git or no checkout."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
