"""The numbers that are handed to Ray for Prometheus, and when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from datagen.dataset.tasks import PhotoVariants, Plan, ShardTask
from datagen.photos.source_file import SourceFile
from pipelines.cluster import prometheus
from pipelines.cluster.prometheus import BUILD, TRAINING, build_exported, stage_exported
from pipelines.recipes.load import dataset_recipe, training_recipe
from tests.support.eventually import eventually
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageProgress

Exported = dict[str, float]


class KeptGauge:
    """Takes what Ray's gauge takes, and keeps it; Ray shows its own to Prometheus alone."""

    exported: Exported
    labels: list[Mapping[str, str]]

    def __init__(self, name: str, *, description: str, tag_keys: tuple[str, ...]) -> None:
        self._name, self._keys = name, tag_keys

    def set(self, value: float, *, tags: Mapping[str, str]) -> None:
        assert tuple(tags) == self._keys
        self.exported[self._name] = value
        self.labels.append(tags)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    KeptGauge.exported, KeptGauge.labels = {}, []
    monkeypatch.setattr(prometheus, "Gauge", KeptGauge)
    monkeypatch.setattr(prometheus, "SECONDS", 0.01)
    return KeptGauge.exported


def test_a_stage_exports_its_progress_and_that_it_has_ended(
    exported: Exported, tmp_path: Path
) -> None:
    recipe = training_recipe("demo", [f"output={tmp_path}", "manifest=/set"])
    stage, begin = StagePaths(tmp_path, "warmup"), time.time()
    stage.root.mkdir(parents=True)
    progress = StageProgress(
        stage="warmup", step=7, steps=10, images_per_second=64.0, headline="loss/fm",
        headline_value=0.5, updated=1e9, checkpoint_step=5, checkpoint_time=9e8, worker_hours=0.0,
        data_wait_fraction=0.25, memory_gb=2.0,
    )  # fmt: skip
    with stage_exported(recipe, stage) as export:
        export(None)
        # Neither a step nor a checkpoint yet: they are missed from the beginning of the command on.
        eventually(lambda: "flowmapsr_restarts" in exported)
        assert exported["flowmapsr_last_step_seconds"] >= begin
        assert exported["flowmapsr_checkpoint_seconds"] >= begin
        assert "flowmapsr_step" not in exported
        export(progress)
    assert exported == {
        "flowmapsr_step": 7, "flowmapsr_steps_planned": 10,
        "flowmapsr_loss": 0.5, "flowmapsr_images_per_second": 64.0,
        "flowmapsr_data_wait_fraction": 0.25, "flowmapsr_memory_bytes": 2e9,
        "flowmapsr_restarts": 0, "flowmapsr_last_step_seconds": 1e9,
        "flowmapsr_checkpoint_seconds": 9e8, "flowmapsr_bad_step": 0,
    }  # fmt: skip
    assert exported.keys() == TRAINING.keys()
    labels = {"run": str(tmp_path), "stage": "warmup", "dataset": "/set"}
    assert all(one == labels for one in KeptGauge.labels)


def test_a_mixture_is_labeled_with_all_its_datasets(exported: Exported, tmp_path: Path) -> None:
    for uris, label in (
        (["/a", "s3://b/c"], "/a, s3://b/c"),
        ([f"/{name}" for name in "abcde"], "/a, /b, /c, 2 more"),
    ):
        sources = "sources=[" + ",".join(f"{{uri: '{uri}'}}" for uri in uris) + "]"
        recipe = training_recipe("demo", [f"output={tmp_path}", sources])
        KeptGauge.labels.clear()
        with stage_exported(recipe, StagePaths(tmp_path, "warmup")):
            pass
        assert {one["dataset"] for one in KeptGauge.labels} == {label}


def test_only_a_bad_step_of_this_command_is_exported(exported: Exported, tmp_path: Path) -> None:
    recipe = training_recipe("demo", [f"output={tmp_path}", "manifest=/set"])
    stage = StagePaths(tmp_path, "warmup")
    stage.root.mkdir(parents=True)
    with pytest.raises(RuntimeError), stage_exported(recipe, stage):
        stage.bad_step.write_text("{}")
        raise RuntimeError
    assert exported["flowmapsr_bad_step"] == 1
    with stage_exported(recipe, stage):
        pass
    assert exported["flowmapsr_bad_step"] == 0


def test_a_build_exports_what_is_done_of_it(exported: Exported) -> None:
    photos = [PhotoVariants(SourceFile(f"/{name}", 1, "1"), 9, 9, 0, 3) for name in "abc"]
    halves = [photos[0]._replace(variants=1), photos[0]._replace(first=1, variants=2)]
    tasks = [ShardTask(index=0, photos=tuple(photos[1:2])), ShardTask(index=1, photos=(halves[0],))]
    tasks.append(ShardTask(index=2, photos=(halves[1], photos[2])))
    recipe = dataset_recipe("demo", ["sources=[/photos]", "output=/set"])
    plan = Plan(recipe=recipe, recipe_digest="", base=None, tasks=tuple(tasks), rejected=())

    def done() -> list[float | None]:
        kinds = ("samples", "photos", "tasks")
        return [exported.get(f"flowmapsr_dataset_{kind}_done") for kind in kinds]

    with build_exported(plan, tasks[1:]) as export:
        eventually(lambda: done() == [3, 1, 1])
        export(tasks[1])
        eventually(lambda: done() == [4, 2, 2])
        export(tasks[2])
    assert done() == [9, 3, 3]
    assert exported["flowmapsr_dataset_samples_planned"] == 9
    assert exported["flowmapsr_dataset_photos_planned"] == 3
    assert exported["flowmapsr_dataset_tasks_planned"] == 3
    assert exported.keys() == BUILD.keys()
