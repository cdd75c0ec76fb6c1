"""`flowmapsr demo`: a recipe on photographs that come with two installed libraries.

Runs the same flow as any full recipe; this file only copies the photos and sums up the results.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pydantic import AliasChoices, Field

from datagen.errors import FlowmapsrError
from datagen.io import storage
from datagen.records import FrozenModel
from pipelines.recipes.full_recipe import COMPARISON, FullRecipe
from pipelines.recipes.load import absolute_location, full_recipe
from pipelines.terminal.doing import doing
from pipelines.terminal.reports import evaluation_table, review_of
from pipelines.terminal.text import command
from training.run_dir.paths import REPORT, finished_stages
from training.run_dir.records import BICUBIC, PSNR, EvaluationRow
from training.tracking.parent_run import flush_pending
from training.tracking.summary.ending import ending_lines

TRAINING_PHOTOS = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/motorcycle_right.png"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
HELD_OUT_PHOTOS = (("skimage", "data/astronaut.png"), ("skimage", "data/coffee.png"))
"""Never trained on."""
DEMOS = {"flowmapsr": "demo", "elir": "elir-demo"}
"""The recipe of each system."""
NUMBERS = "report.json"


class DemoReport(FrozenModel):
    """`report.json`: what the demo measured and how long each part took."""

    output: str
    recipe_digest: str
    rows: tuple[EvaluationRow, ...]
    seconds: dict[str, float]
    gain_db: float = Field(validation_alias=AliasChoices("gain_db", "one_step_gain_db"))
    """Mean PSNR of the fewest steps minus that of their input, the LQ image resized by bicubic."""
    steps: int = 1
    """The fewest that were evaluated."""

    @property
    def gain(self) -> str:
        """What the model gains, for a person."""
        words = "One step gains" if self.steps == 1 else f"{self.steps} steps gain"
        return f"{words} {self.gain_db:+.2f} dB over the input"

    def lines(self) -> list[str]:
        """The results, for a person."""
        base = Path(self.output)
        times = ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds.items())
        return [
            *evaluation_table(self.rows),
            f"{self.gain}: mean of all held-out photos and scales.",
            f"Times: {times}",
            *ending_lines(base / "run"),
            f"Picture   {base / COMPARISON}",
            f"Dataset   {base / 'dataset'}",
            f"Run       {base / 'run'}",
            f"Report    {base / REPORT}",
            f"Numbers   {base / NUMBERS}",
            f"Review    {review_of(str(base / 'run'))}",
            f"Prefect   {_prefect_page()}",
            f"Next: {command('upscale', 'PHOTO', '-o', 'OUT.png', '--model', str(base / 'run'))}",
        ]


def _prefect_page() -> str:
    """The address of Prefect's server, or the command that starts the one of this demo."""
    if address := os.environ.get("PREFECT_API_URL"):
        return address.removesuffix("/api")
    program = Path(sys.executable).parent / "prefect"
    return f"PREFECT_HOME={os.environ['PREFECT_HOME']} {program} server start"


def demo_recipe(output: str, name: str) -> FullRecipe:
    """The recipe of that name with the demo's photos, everything under `output`."""
    base = Path(absolute_location(output, field="--output"))
    paths = {
        "output": str(base),
        "dataset.sources": [str(base / "photos" / "train")],
        "evaluation.photos": str(base / "photos" / "held-out"),
    }
    return full_recipe(name, paths)


def run_demo(recipe: FullRecipe, *, check_servers: Callable[[], None]) -> DemoReport:
    """Photos to a compared, upscaled picture under its `output`; a second run skips what is done.

    Args:
        check_servers: called if there is work for them.

    Raises:
        FlowmapsrError: a part failed, or the fewest steps are no better than their input.
    """
    base = Path(recipe.output)
    use_local_services(base)
    report = finished_report(base, recipe)
    if report is None:
        report = _run(base, recipe, check_servers)
    else:
        flush_pending(recipe.training)
    if report.gain_db <= 0:
        raise FlowmapsrError(f"{report.gain}, which is no improvement; see {base / REPORT}")
    return report


def use_local_services(base: Path) -> None:
    """MLflow on a SQLite file and Prefect's home below `base`, unless their variables are set."""
    store = base / "mlruns"
    store.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    os.environ.setdefault("PREFECT_HOME", str(base / "prefect"))


def finished_report(base: Path, recipe: FullRecipe) -> DemoReport | None:
    """The report of an earlier demo of the same recipe, if everything it names is still there."""
    path = base / NUMBERS
    files = (path, base / COMPARISON, base / REPORT, Path(recipe.training.manifest))
    if not all(file.is_file() for file in files) or finished_stages(recipe.training) is None:
        return None
    report = DemoReport.model_validate_json(path.read_bytes())
    return report if report.recipe_digest == _digest(recipe) else None


def _digest(recipe: FullRecipe) -> str:
    return f"{recipe.dataset.digest()}-{recipe.training.digest()}"


def _run(base: Path, recipe: FullRecipe, check_servers: Callable[[], None]) -> DemoReport:
    from pipelines.preflight import check_dataset, check_place, check_surroundings

    check_servers()
    check_surroundings()
    copy_photos(TRAINING_PHOTOS, base / "photos" / "train")
    copy_photos(HELD_OUT_PHOTOS, base / "photos" / "held-out")
    check_place(recipe.training)
    check_dataset(recipe.dataset)
    doing("loading the libraries")
    from pipelines.flows.full import full
    from pipelines.orchestration.guard import guarded

    record = guarded(full, recipe)
    report = DemoReport(
        output=str(base),
        recipe_digest=_digest(recipe),
        rows=record.rows,
        seconds=record.seconds,
        gain_db=least_steps_gain(record.rows),
        steps=min(recipe.evaluation.steps),
    )
    storage.write_bytes(str(base / NUMBERS), report.model_dump_json(indent=2).encode())
    return report


def copy_photos(photos: tuple[tuple[str, str], ...], folder: Path) -> None:
    """Copies photos of installed packages to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, path in photos:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise FlowmapsrError(f"the demo's photos come with {package}, which is not installed")
        source = Path(spec.origin).parent / path
        if not source.is_file():
            raise FlowmapsrError(f"this version of {package} has no {path}; install the pinned set")
        shutil.copyfile(source, folder / source.name)


def least_steps_gain(rows: tuple[EvaluationRow, ...]) -> float:
    """Mean over the scales of PSNR(fewest steps) - PSNR(bicubic), dB."""
    bicubic = {row.scale: row.values[PSNR] for row in rows if row.method == BICUBIC}
    ours = [row for row in rows if row.steps]
    least = min(row.steps for row in ours)
    gains = [row.values[PSNR] - bicubic[row.scale] for row in ours if row.steps == least]
    return sum(gains) / len(gains)
