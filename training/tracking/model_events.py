"""What MLflow is told of a stage's checkpoints and of its model."""

from __future__ import annotations

from collections.abc import Sequence

from training.run_dir.paths import StagePaths
from training.run_dir.records import ChosenStep
from training.settings.recipe import TrainingRecipe
from training.tracking.events import NOTE, DatasetInput, Model, digest_tag
from training.tracking.journal import metrics_at

STAGE_MODEL = """\
The model of stage `{stage}`: its weights at step {step} ({why}). {place}

To train on from it, register it (the button above), and name the version in a recipe:
`stages.STAGE.init_from=models:/NAME/VERSION`. To use it where its folder is:
`flowmapsr upscale photo.jpg -o large.png --scale 4 --model {path}`
"""
CHECKPOINT = """\
The state of stage `{stage}` at step {step}, from which its training can continue, in `{path}`. It
is no model to be loaded or registered: the stage makes that at its end.
"""


def stage_model(
    recipe: TrainingRecipe, folder: StagePaths, datasets: Sequence[DatasetInput], chosen: ChosenStep
) -> Model:
    """The model folder that a stage has just written."""
    path, limit = str(folder.model), recipe.upload_models_gb
    upload = sum(file.stat().st_size for file in folder.model.iterdir()) <= limit * 1e9
    place = (
        "Its files are here, under Artifacts."
        if upload
        else f"Its files stay in `{path}`: they are more than upload_models_gb = {limit:g}."
    )
    note = STAGE_MODEL.format(
        stage=folder.name, step=chosen.step, why=chosen.why, place=place, path=path
    )
    return Model(
        name=folder.name,
        type="stage model",
        step=chosen.step,
        path=path,
        upload=upload,
        params={"stage": folder.name, "step": str(chosen.step), "chosen": chosen.why},
        tags=_tags(recipe, folder, datasets, path=path, note=note),
        dataset=datasets[0],
        held_out=metrics_at(folder.root, chosen.step, prefix="val/"),
    )


def checkpoint(
    recipe: TrainingRecipe,
    folder: StagePaths,
    datasets: Sequence[DatasetInput],
    *,
    step: int,
    uri: str,
) -> Model:
    """A checkpoint that was just written; its files stay where they are."""
    note = CHECKPOINT.format(stage=folder.name, step=step, path=uri)
    return Model(
        name=f"{folder.name}-step-{step:06d}",
        type="checkpoint",
        step=step,
        path=uri,
        upload=False,
        params={"stage": folder.name, "step": str(step)},
        tags=_tags(recipe, folder, datasets, path=uri, note=note),
        dataset=datasets[0],
        held_out=metrics_at(folder.root, step, prefix="val/"),
    )


def _tags(
    recipe: TrainingRecipe,
    folder: StagePaths,
    datasets: Sequence[DatasetInput],
    *,
    path: str,
    note: str,
) -> dict[str, str]:
    return {
        NOTE: note,
        "files": path,
        "run": str(folder.run),
        "recipe.digest": recipe.digest(),
        "dataset.digest": digest_tag(datasets),
    }
