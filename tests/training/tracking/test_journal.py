"""Journals: events that wait on disk for MLflow."""

from __future__ import annotations

from pathlib import Path

from training.run_dir.further import aside, set_aside
from training.run_dir.paths import StagePaths
from training.run_dir.records import StageWeights
from training.tracking.events import Event, Picture
from training.tracking.journal import journals


def test_files_of_a_stage_that_was_set_aside_are_sent_from_where_they_are_kept(
    tmp_path: Path,
) -> None:
    """The stage that is trained anew makes files of the same names."""
    stage = StagePaths(tmp_path, "distill")
    pictures = journals(tmp_path).pictures
    for number in range(3):
        stage.root.mkdir(parents=True)
        file = stage.root / "photo.png"
        file.write_text(str(number))
        pictures.append(Picture(key="photo", step=number, path=str(file)))
        if number < 2:
            grew_from = StageWeights(stage="warmup", step=number, checkpoint="")
            set_aside(stage, aside(stage), grew_from)

    sent: list[Event] = []
    while pictures.send(sent.extend, run_id="run"):
        pass
    found = [(one.step, Path(one.path)) for one in sent if isinstance(one, Picture)]
    assert [(step, path.read_text()) for step, path in found] == [(0, "0"), (1, "1"), (2, "2")]
    assert [path.parent.name for _, path in found] == ["distill.1", "distill.2", "distill"]
