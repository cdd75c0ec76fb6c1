"""Everything that a first hour on a GPU must show, each program in one command.

`python -m tests.benchmarks.gpu first|measure|train OUT`; with `--tiny` on a CPU. Files that are to
be brought back go to OUT; the exit code is 1 when anything failed, which is listed at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.gpu import first, measure, train
from tests.benchmarks.gpu.launching import Launch, launch_torchrun
from tests.benchmarks.gpu.options import Options, default_work


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    programs = described.add_subparsers(dest="program", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("out", type=Path, help="folder for what is brought back")
    shared.add_argument("--work", type=Path, default=default_work(), help="for what stays there")
    shared.add_argument("--tiny", action="store_true", help="in small, as a CPU does it in minutes")
    with_photos = argparse.ArgumentParser(add_help=False)
    with_photos.add_argument(
        "--photos",
        type=Path,
        default=os.environ.get("PHOTOS"),
        help="folder of photos (default: PHOTOS, or photos that come with installed libraries)",
    )

    one = programs.add_parser(
        "first",
        parents=[shared, with_photos],
        help="does everything run?",
        description=first.__doc__,
    )
    one.add_argument("--only", nargs="+", default=[], metavar="CHECK", help="names of checks")
    one.add_argument("--at-once", type=int, help="trainings side by side (default 12, tiny 2)")
    one.add_argument("--limit", type=float, default=200.0, help="seconds of one training")

    two = programs.add_parser(
        "measure", parents=[shared], help="how fast is it?", description=measure.__doc__
    )
    two.add_argument("--only", nargs="+", default=measure.PARTS, choices=measure.PARTS)
    two.add_argument("--limit", type=float, default=520.0, help="seconds; no row begins after them")

    three = programs.add_parser(
        "train", parents=[shared, with_photos], help="trains a model", description=train.__doc__
    )
    three.add_argument("seconds", type=float, help="until the training is stopped")
    three.add_argument("--recipe", default=train.RECIPE, help="name or file")
    for section in ("dataset", "training"):
        three.add_argument(
            f"--{section}", nargs="+", default=[], metavar="a.b=value", help="its settings"
        )
    three.add_argument("--first-part", type=int, default=0, help="of the model's, to bring back")
    return described


def main(words: Sequence[str] | None = None, *, launch: Launch = launch_torchrun) -> int:
    """Runs one program; its exit code."""
    given = parser().parse_args(words)
    options = Options(
        out=given.out.absolute(),
        work=given.work.absolute(),
        photos=getattr(given, "photos", None),
        tiny=given.tiny,
    )
    match given.program:
        case "first":
            at_once = given.at_once or (2 if given.tiny else 12)
            checks = first.Checks(options, launch, given.only, at_once, given.limit)
            return checks.run()
        case "measure":
            return measure.measure(options, given.only, limit=given.limit)
        case _:
            return train.Training(
                options,
                seconds=given.seconds,
                recipe=given.recipe,
                changes=given.training,
                dataset_changes=given.dataset,
                first_part=given.first_part,
                launch=launch,
            ).run()


if __name__ == "__main__":
    sys.exit(main())
