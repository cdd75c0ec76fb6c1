"""Packs a training into what can be carried back: a few files of limited size.

`run.tgz` holds journals, tables and the newest pictures; the last finished stage's model follows in
parts, as many as there is room for: `cat model.tar.* | tar x` unpacks it.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from training.run_dir.paths import StagePaths

ROOM = 63 * 2**20
"""Bytes of all that is carried back."""
PART = 19 * 2**19
"""Bytes of a part of the model; six parts and run.tgz fit into `ROOM`."""
PICTURES = 3 * 2**20
"""Bytes of pictures in run.tgz."""


def pack(
    stages: list[StagePaths], out: Path, *, first_part: int = 0, part: int = PART, room: int = ROOM
) -> list[str]:
    """Packs a run whose stages these are; says what is there.

    Args:
        first_part: of the model; the parts before it were brought back by another call.
    """
    out.mkdir(parents=True, exist_ok=True)
    packed = out / "run.tgz"
    _pack_run(stages[0].run, packed)
    said = [f"run.tgz: {packed.stat().st_size / 2**20:.1f} MiB"]
    finished = [stage for stage in stages if stage.model.is_dir()]
    if not finished:
        return [*said, "no stage is finished: there is no model"]
    whole = finished[-1].run.with_name("model.tar")
    with tarfile.open(whole, "w") as tar:
        tar.add(finished[-1].model, "model")
    size = whole.stat().st_size
    count = -(-size // part)
    numbers = range(first_part, min(count, first_part + (room - packed.stat().st_size) // part))
    with whole.open("rb") as file:
        for number in numbers:
            file.seek(number * part)
            (out / f"model.tar.{number:02d}").write_bytes(file.read(part))
    here = f"{len(numbers)} of {count} parts, from part {first_part} on"
    return [*said, f"model of {finished[-1].name}: {size / 2**20:.1f} MiB; {here}"]


def _pack_run(run: Path, packed: Path) -> None:
    """Everything but weights, and of the pictures the newest."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    files = [path for path in files if not {"checkpoints", "model"} & set(path.parts)]
    room = PICTURES
    pictures = [path for path in files if path.suffix in (".png", ".jpg")]
    for path in sorted(pictures, key=lambda path: -path.stat().st_mtime):
        room -= path.stat().st_size
        if room < 0:
            files.remove(path)
    with tarfile.open(packed, "w:gz") as tar:
        for path in files:
            tar.add(path, path.relative_to(run.parent))
