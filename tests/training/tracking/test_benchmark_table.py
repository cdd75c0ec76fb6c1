"""What a run of MLflow's says of a benchmark: the table, and where the models are from."""

from __future__ import annotations

from pathlib import Path

from datagen.dataset.manifest import load_manifest
from tests.support.models import saved_model
from training.run_dir.records import EvaluationRow, Seconds
from training.settings.model import ModelSettings
from training.settings.recipe import TrainingRecipe
from training.tracking.benchmark_table import links, table_of, values_of
from training.tracking.events import NOTE, DatasetInput, Tags
from training.tracking.store.run_names import read_names

ROW = EvaluationRow(
    method="a/b, c", scale=4, steps=2, psnr=25.0, ssim=0.7, seconds=0.5,
    values={"psnr_rgb": 25.0, "niqe": 5.25},
)  # fmt: skip
TIMED = Seconds(
    method="a", steps=1, side=512, seconds=0.25, low=0.2, high=0.3, calls=3, hardware="a CPU"
)


def test_trainings_and_datasets_of_the_models_are_named(
    undisturbed: TrainingRecipe, dataset: Path, tiny_model: ModelSettings, tmp_path: Path
) -> None:
    trained = Path(undisturbed.output) / "stages/distill/model"
    apart = saved_model(tmp_path / "model", tiny_model, trained=False)
    models = {"ours": str(trained), "other": str(apart)}
    tags, *inputs = links(models, {"ours": "?", "other": "0"}, table_of([ROW]))
    digest, names = load_manifest(str(dataset)).digest, read_names(Path(undisturbed.output))
    assert isinstance(tags, Tags) and names is not None
    assert tags.values["training.ours"] == names.parent and "training.other" not in tags.values
    assert tags.values["dataset.digest"] == f"{digest}, 0"
    (one,) = inputs
    assert isinstance(one, DatasetInput) and (one.digest, one.samples) == (digest, 12)
    assert one.source == undisturbed.manifest and one.name == "dataset"
    note = tags.values[NOTE]
    assert "| a/b, c | x4 | 2 | 25.0000 | 5.2500 | 0.5 |" in note
    assert f"- ours: `{trained}`, trained in MLflow run {names.parent}" in note


def test_metrics_have_names_that_mlflow_takes() -> None:
    assert values_of([ROW], [TIMED]) == {
        "psnr_rgb_x4_nfe2/a-b- c": 25.0,
        "niqe_x4_nfe2/a-b- c": 5.25,
        "seconds_512_nfe1/a": 0.25,
    }
    assert "| a | 1 | 512x512 | 0.25 |" in table_of([], [TIMED]).to_markdown()
