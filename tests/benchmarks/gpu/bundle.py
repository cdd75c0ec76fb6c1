"""Makes the folder `.gpu` that travels with the project to a machine with a GPU and no network.

`make gpu-bundle PHOTOS=FOLDER`. It holds the packages that the machine's image lacks, in the
versions of constraints.txt and for its Python; the photos; and `run.sh`, which starts a program
there. Needs pip and package registries, and none of the project's own packages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

FOLDER = ".gpu"
LIMIT = 64 * 2**20
"""Bytes that can travel: this folder, and the files that git tracks or does not ignore."""
PYTHON = "3.12"
PLATFORMS = tuple(
    f"manylinux{version}_x86_64" for version in ("_2_28", "_2_27", "_2_17", "2014", "1")
)
WHEELS = (
    *("annotated-types", "pydantic", "pydantic-core", "typing-extensions", "typing-inspection"),
    *("hjson", "diffusers", "importlib-metadata"),
    *("albumentations", "albucore", "simsimd", "stringzilla", "simplejpeg"),
)
SOURCES = ("deepspeed",)
"""Published as source only. Nothing in it is compiled: no operator of its own is used."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos, copied as it is")
    given = parser.parse_args()
    tree = Path.cwd()
    if not (tree / "constraints.txt").is_file():
        parser.error("run it in the project's folder, with its constraints.txt")
    folder = tree / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("run.sh"), folder)
    if given.photos is not None:
        _copy_photos(given.photos, folder / "photos")
    with tempfile.TemporaryDirectory() as name:
        packages = Path(name) / "packages"
        _install(Path(name) / "wheels", packages, tree / "constraints.txt")
        # Together they pack to half of what their wheels have.
        with tarfile.open(folder / "packages.tar.xz", "w:xz") as tar:
            tar.add(packages, ".")
    return report(tree)


def _copy_photos(photos: Path, folder: Path) -> None:
    """Copies the files with their folders, but not the folders' modes: a read-only one could not be
    removed by the next call."""
    for path in sorted(photos.rglob("*")):
        if path.is_file():
            copy = folder / path.relative_to(photos)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def report(tree: Path, *, limit: int = LIMIT) -> int:
    """Says what will travel; exit code 1 when it is too much."""
    folder = tree / FOLDER
    parts = {
        f"{FOLDER}/packages.tar.xz": _size([folder / "packages.tar.xz"]),
        f"{FOLDER}/photos": _size((folder / "photos").rglob("*")),
        "the project": _size(tree / name for name in _travelling(tree)),
    }
    for name, size in parts.items():
        print(f"{size / 2**20:6.1f} MiB  {name}")
    total = sum(parts.values()) + _size([folder / "run.sh"])
    print(f"{total / 2**20:6.1f} MiB  in all, of {limit / 2**20:.0f}")
    if total <= limit:
        return 0
    print(
        f"{(total - limit) / 2**20:.1f} MiB too many: give fewer or smaller photos, or remove "
        "files that git neither tracks nor ignores",
        file=sys.stderr,
    )
    return 1


def _travelling(tree: Path) -> list[str]:
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(words, cwd=tree, check=True, capture_output=True, text=True).stdout
    return [name for name in said.split("\0") if name and not name.startswith(f"{FOLDER}/")]


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


def _install(wheels: Path, packages: Path, constraints: Path) -> None:
    """Puts the packages into a folder, for the machine's Python instead of this one."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    target = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    for platform in PLATFORMS:
        target += ["--platform", platform]
    versions = _versions(constraints)
    pinned = [f"{name}=={versions[name]}" for name in WHEELS]
    subprocess.run([*pip, "download", "--no-deps", *target, "-d", str(wheels), *pinned], check=True)
    for name in SOURCES:
        words = [*pip, "wheel", "--no-deps", "-w", str(wheels), f"{name}=={versions[name]}"]
        subprocess.run(words, check=True, env={**os.environ, "DS_BUILD_OPS": "0"})
    check_wheels(wheels)
    made = [str(path) for path in sorted(wheels.glob("*.whl"))]
    words = ["install", "--no-index", "--no-deps", "--no-compile", "--target", str(packages)]
    subprocess.run([*pip, *words, *target, *made], check=True)


def _versions(constraints: Path) -> dict[str, str]:
    lines = constraints.read_text().splitlines()
    pinned = (line.split(";")[0].strip().split("==") for line in lines if "==" in line)
    return {name.lower(): version for name, version in pinned}


def check_wheels(folder: Path) -> None:
    """
    Raises:
        SystemExit: one is missing, or does not fit the machine: pip builds for the one it runs on.
    """
    found = {path.name.split("-")[0].replace("_", "-").lower() for path in folder.glob("*.whl")}
    faults = [f"{name} is missing" for name in (*WHEELS, *SOURCES) if name not in found]
    for path in folder.iterdir():
        abi, platform = path.stem.split("-")[-3], path.stem.split("-")[-1]
        if path.suffix != ".whl" or not (
            platform == "any" or abi == f"cp{PYTHON.replace('.', '')}"
        ):
            faults.append(f"{path.name} does not fit Python {PYTHON} on Linux")
        elif platform == "any" and any(n.endswith(".so") for n in zipfile.ZipFile(path).namelist()):
            faults.append(f"{path.name} is named as pure Python and holds machine code")
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    sys.exit(main())
