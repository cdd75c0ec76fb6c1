"""The command line: arguments in, text and exit code out, in this process and in another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from datagen.io.lock import TRAINING, output_lock
from training.run_dir.records import StageProgress, StageRecord, WorkerGroup
from training.run_dir.starts import Failure, Start, append_line

Run = Callable[..., object]
HEAVY = ("torch", "ray", "prefect", "mlflow", "deepspeed", "diffusers", "albumentations", "cv2")


WHOLE = ["run", "demo", "output=x", "evaluation.photos=b", "dataset.sources=[a]"]


def modules_loaded_by(*words: str) -> set[str]:
    code = (
        "import sys; from pipelines.cli import main\n"
        f"sys.argv = ['flowmapsr', *{list(words)!r}]\n"
        "try: main()\n"
        "except SystemExit: print('\\n', *sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return set(ended.stderr.split("\n")[-2].split())


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("dataset", "build", "--help"),
        ("dataset", "build", "demo", "sources=[a]", "output=b", "--dry-run"),
        ("recipes", "demo"),
        ("train", "demo", "manifset=a"),
        ("evaluate", "model", "--photos", "x", "--scales", "a"),
    ],
)
def test_help_and_mistakes_load_nothing_heavy(words: tuple[str, ...]) -> None:
    loaded = modules_loaded_by(*words)
    assert "pipelines.cli" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    # Help needs no settings, whose import takes as long as all of the rest.
    assert "--help" not in words or "datagen.records" not in loaded


def test_help_is_quick_and_lists_the_commands(flowmapsr: Run) -> None:
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        ended = flowmapsr("--help")
        seconds.append(time.perf_counter() - begun)
    assert ended.code == 0
    for name in ("demo", "recipes", "dataset", "train", "evaluate", "upscale", "status"):
        assert name in ended.out
    assert min(seconds) < 2, "0.6 s on an idle machine"


def test_version_prints_name_and_number(invoke: Run) -> None:
    assert invoke("--version").out.startswith("flowmapsr 0.")


def test_wrong_usage_is_one_json_object_too(invoke: Run) -> None:
    ended = invoke("train", "--json")
    assert (ended.code, ended.json) == (2, {"error": "Missing argument 'RECIPE'."})
    assert "Usage:" in ended.err and invoke("train").out == ""


def test_dry_run_prints_the_resolved_recipe(invoke: Run, tmp_path: Path) -> None:
    words = ("dataset", "build", "demo", "sources=[a,b]", "output=set", "workers=3", "--dry-run")
    ended = invoke(*words)
    recipe = yaml.safe_load(ended.out)
    assert ended.code == 0
    assert recipe["sources"] == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert (recipe["workers"], recipe["codec"]) == (3, {"kind": "dct8"})
    assert invoke(*words, "--json").json == recipe
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_everything_prints_all_sections(invoke: Run, tmp_path: Path) -> None:
    recipe = invoke(*WHOLE, "training.stages.warmup.steps=7", "--dry-run", "--json").json
    assert recipe == yaml.safe_load(
        invoke(*WHOLE, "training.stages.warmup.steps=7", "--dry-run").out
    )
    assert recipe["training"]["manifest"] == f"{tmp_path}/x/dataset/manifest.json"
    assert recipe["training"]["stages"][0]["steps"] == 7
    assert recipe["evaluation"]["photos"] == f"{tmp_path}/b"
    assert list(tmp_path.iterdir()) == []


def test_everything_of_another_recipe_is_refused_before_the_dataset_is_built(
    invoke: Run, tmp_path: Path
) -> None:
    words = ("run", "demo", "output=x", f"dataset.sources=[{tmp_path}]", "evaluation.photos=/")
    recipe = yaml.safe_load(invoke(*words, "training.seed=8", "--dry-run").out)["training"]
    stage = tmp_path / "x" / "run" / "stages" / "warmup"
    stage.mkdir(parents=True)
    (tmp_path / "x" / "run" / "recipe.json").write_text(json.dumps(recipe))
    done = StageRecord(
        stage="warmup", steps=1, images_seen=8, recipe_digest="a", dataset_digest="b", model="m"
    )
    (stage / "done.json").write_text(done.model_dump_json())
    ended = invoke(*words)
    assert ended.code in (1, 2) and "seed was 8, is 7" in ended.err
    assert not (tmp_path / "x" / "dataset").exists()


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["dataset", "build", "demo"], 2, ["sources: must be given", "output: must be given"]),
        (["dataset", "build", "demoo", "output=x"], 2, ["did you mean 'demo'?"]),
        (["dataset", "build", "demo", "sources=[none]", "output=x"], 2, ["none does not exist"]),
        (
            ["dataset", "build", "demo", "sources=[none]", "output=x", "wrkers=1"],
            2,
            ["wrkers = 1", "'workers'"],
        ),
        (["dataset", "build", "demo", "sources"], 2, ["name=value"]),
        (["dataset", "inspect", "nowhere"], 1, ["nowhere/manifest.json"]),
        (
            ["evaluate", "model", "--photos", "p", "--scales", "0"],
            2,
            ["scales.0 = '0'", "greater than or equal to 1"],
        ),
        (["evaluate", "model", "--photos", "p"], 2, ["p does not exist"]),
        (
            ["evaluate", "model", "--photos", ".", "--baseline", "theirs=none"],
            2,
            ["evaluation.baselines.0.folder: ", "none does not exist"],
        ),
        (
            ["evaluate", "model", "--photos", "p", "--baseline", "a b=none"],
            2,
            ["name = 'a b'"],
        ),
        (
            ["evaluate", "model", "--photos", "p", "--track"],
            1,
            ["model is not the folder of a finished training"],
        ),
        (["upscale", "none.jpg", "-o", "out.png"], 1, ["none.jpg does not exist"]),
        (["upscale", "~/none.jpg", "-o", "a.png"], 1, [f"{Path.home()}/none.jpg does not exist"]),
        (
            ["run", "demo", "output=x"],
            2,
            ["dataset.sources: must be given", "evaluation.photos: must be given"],
        ),
        (["run", "realesrgan", "output=x"], 2, ["no 'training' section; its sections: dataset"]),
        ([*WHOLE, "workers=2"], 2, ["workers = 2: unknown key", "training"]),
        ([*WHOLE, "training.output=y"], 2, ["follows from output", "leave training.output out"]),
        (WHOLE, 2, ["dataset.sources: ", "/a does not exist"]),
        ([*WHOLE[:-1], "dataset.sources=[/]"], 2, ["evaluation.photos: ", "/b does not exist"]),
        ([*WHOLE, "--cluster"], 1, ["RAY_ADDRESS is not set"]),
        (["status", "nowhere"], 1, ["no training run", "recipe.json"]),
    ],
)
def test_mistakes_are_answered_clearly(
    invoke: Run, tmp_path: Path, words: list[str], code: int, parts: list[str]
) -> None:
    ended = invoke(*words, "--json")
    assert ended.code == code
    for part in parts:
        assert part in ended.err and part in ended.json["error"]
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["dataset", "bild"], ["upscale", "a.png"], ["demo", "--fast"]])
def test_unknown_arguments_are_usage_errors(invoke: Run, words: list[str]) -> None:
    ended = invoke(*words)
    assert (ended.code, ended.out) == (2, "")


def test_a_process_ends_with_the_code_and_one_object_on_stdout(
    flowmapsr: Run, tmp_path: Path
) -> None:
    ended = flowmapsr(
        "dataset", "build", "demo", "sources=[none]", "output=x", "wrkers=1", "--json"
    )
    assert ended.code == 2
    assert "did you mean 'workers'" in ended.json["error"]
    assert ended.err.strip() == ended.json["error"]
    assert flowmapsr("dataset", "bild").code == 2
    assert list(tmp_path.iterdir()) == []


def test_verifying_a_missing_dataset_is_an_issue(invoke: Run) -> None:
    ended = invoke("dataset", "verify", "nowhere", "--json")
    assert ended.code == 1
    assert not ended.json["ok"] and "nowhere" in ended.json["faults"][0]["where"]


def test_training_without_a_dataset_is_refused_at_once(invoke: Run, tmp_path: Path) -> None:
    stage = "{name: warmup, objective: {kind: flow_matching}, steps: 1, global_batch: 8}"
    (tmp_path / "mine.yaml").write_text(f"training: {{stages: [{stage}]}}")
    ended = invoke("train", "./mine.yaml", "manifest=nowhere", "output=run", "--json")
    assert ended.code == 1
    assert "nowhere/manifest.json" in ended.json["error"]
    assert not (tmp_path / "run").exists()


def test_status_reads_the_files_of_a_run(invoke: Run, tmp_path: Path) -> None:
    stage = {"objective": {"kind": "flow_matching"}, "steps": 100, "global_batch": 8}
    recipe = {"manifest": "/m", "output": "/r", "stages": []}
    recipe["stages"] = [{"name": name, **stage} for name in ("warmup", "distill", "polish")]
    run = tmp_path / "run"
    (run / "stages" / "warmup").mkdir(parents=True)
    (run / "stages" / "distill").mkdir()
    (run / "recipe.json").write_text(json.dumps(recipe))
    done = StageRecord(
        stage="warmup", steps=100, images_seen=800, recipe_digest="a", dataset_digest="b", model="m"
    )
    (run / "stages" / "warmup" / "done.json").write_text(done.model_dump_json())
    progress = StageProgress(
        stage="distill", step=40, steps=100, images_per_second=4.0, headline="loss/total",
        headline_value=0.1,
        updated=time.time(), checkpoint_step=30, checkpoint_time=time.time() - 200,
        worker_hours=0.1,
    )  # fmt: skip
    (run / "stages" / "distill" / "progress.json").write_text(progress.model_dump_json())

    with output_lock(str(run), TRAINING):
        starting = invoke("status", str(run), "--json").json["stages"]
        assert [stage["state"] for stage in starting] == ["done", "running", "waiting"]
        assert starting[1]["seconds_left"] is None  # the progress is of an earlier start
        progress = progress.model_copy(update={"updated": time.time()})
        (run / "stages" / "distill" / "progress.json").write_text(progress.model_dump_json())
        stages = invoke("status", str(run), "--json").json["stages"]
    assert [stage["state"] for stage in stages] == ["done", "running", "waiting"]
    assert stages[1]["seconds_left"] == 60 * 8 / 4
    assert (stages[1]["headline"], stages[1]["headline_value"]) == ("loss/total", 0.1)
    assert 200 <= stages[1]["checkpoint_age_seconds"] < 260
    text = invoke("status", str(tmp_path)).out  # the folder of a demo, with the run inside
    assert "40/100" in text and "step 30, 3 min ago" in text
    assert "distill loss/total: 0.1" in text

    distill = run / "stages" / "distill"
    for number in range(3):
        workers = WorkerGroup(hosts=("a",), devices=("cpu",), on_gpus=False)
        before = None if number == 0 else "killed"
        start = Start(time=float(number), workers=workers, step=10 * number, ended_before=before)
        append_line(distill / "starts.jsonl", start)
    (distill / "tracking.jsonl").write_text(
        '{"kind":"metrics","step":20,"time_ms":1,"values":{"val/psnr_nfe1":27.25,"loss/total":1}}\n'
        '{"kind":"metrics","step":30,"time_ms":2,"values":{"val/psnr_nfe1":28.5}}\n'
    )
    append_line(
        run / "failures.jsonl", Failure(time=5.0, rank=1, died=False, error="OSError: full")
    )
    stages = invoke("status", str(run), "--json").json["stages"]
    assert (stages[1]["state"], stages[1]["restarts"]) == ("stopped", 2)
    assert stages[1]["validation"] == {"val/psnr_nfe1": 28.5}
    text = invoke("status", str(run)).out
    assert "psnr_nfe1 28.5" in text and "distill stopped: worker 1: OSError: full" in text

    shutil.copytree(run, tmp_path / "other")
    recipe["seed"] = 5
    (tmp_path / "other" / "recipe.json").write_text(json.dumps(recipe))
    compared = invoke("status", str(tmp_path), "--json").json
    assert [Path(one["run"]).name for one in compared["runs"]] == ["other", "run"]
    assert compared["settings"] == {"seed": {str(tmp_path / "other"): "5", str(run): "0"}}
    text = invoke("status", "other", "run", "other").out
    rows = {line.strip()[:19].strip(): line.split()[-2:] for line in text.splitlines() if line}
    assert text.splitlines()[0].split() == ["other", "run"]
    assert (rows["state"], rows["step"]) == (["stopped"] * 2, ["40/100"] * 2)
    assert (rows["val/psnr_nfe1"], rows["seed"]) == (["28.5"] * 2, ["5", "0"])

    (tmp_path / "other" / "recipe.json").write_text('{"manifest": 3}')
    broken = invoke("status", str(tmp_path), "--json")
    assert (broken.code, len(broken.json["runs"])) == (1, 1)
    assert "other/recipe.json is corrupt" in broken.json["left_out"][0]["reason"]
    assert "Left out 1 run:" in invoke("status", str(tmp_path)).out
    alone = invoke("status", str(tmp_path / "other"))
    assert alone.code == 1 and "other/recipe.json is corrupt" in alone.err
    (tmp_path / "nothing").mkdir()
    missing = invoke("status", str(run), str(tmp_path / "nothing"))
    assert missing.code == 1 and "nothing holds no training run" in missing.err
    shutil.rmtree(tmp_path / "other")

    (run / "stages" / "distill" / "progress.json").write_text("{}")
    broken = invoke("status", str(run))
    assert broken.code == 1 and "progress.json" in broken.err


def test_an_unexpected_failure_leaves_a_report(flowmapsr: Run, tmp_path: Path) -> None:
    (tmp_path / "prefect.py").write_text("raise RuntimeError('broken install')")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (160, 160)).save(tmp_path / "photos" / "a.png")
    env = {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    words = ("dataset", "build", "demo", "sources=[photos]", "output=set", "--json")
    ended = flowmapsr(*words, env=env)
    assert ended.code == 1
    assert "broken install" in ended.json["error"] and "Traceback" not in ended.err
    (report,) = tmp_path.glob("flowmapsr-error-*.log")
    assert str(report) in ended.err
    assert "Traceback" in report.read_text() and "dataset build demo" in report.read_text()
