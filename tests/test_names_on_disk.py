"""Each name of a file or folder on disk is written down in one file of the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("datagen", "training", "pipelines")

NAMES = {
    "datagen/dataset/layout.py": (
        *("manifest.json", "sources.jsonl", "rejected.jsonl", "preview.png", "histograms.png"),
        *("plan.json", "shards/", "tasks/", "manifests/"),
    ),
    "training/run_dir/paths.py": (
        *("recipe.json", "failures.jsonl", "stages.json", "stages.md", "mlflow.json", "stages/"),
        *("datasets.json", "done.json", "progress.json", "starts.jsonl", "ended.json"),
        *("bad_step.json", "deepspeed.json", "initialization.txt", "tracking.jsonl", "files.jsonl"),
        *("curves.jsonl", "pictures.jsonl", "models.jsonl", "skipped.jsonl"),
        *("starts.json", "start_seconds.jsonl", "logs/"),
        *("set_aside.jsonl", "folder_id", "first_weights"),
    ),
    "training/checkpoints/records.py": ("trainer_state.json",),
}
"""The only file that may write each name; a folder's name ends with a slash."""


def repeated_names(root: Path) -> list[str]:
    """Every name written outside of its home below `root`, as `path:line: what`."""
    return [
        f"{path}:{line}: {name} belongs only in {home}"
        for layer in LAYERS
        for file in sorted((root / layer).rglob("*.py"))
        for path in [file.relative_to(root).as_posix()]
        for line, text in _strings(ast.parse(file.read_text(encoding="utf-8")))
        for home, names in NAMES.items()
        for name in names
        if path != home and _is_path_with(name, text)
    ]


def _strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """String constants, the parts of f-strings included; docstrings are for people."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield node.lineno, text


def _is_path_with(name: str, text: str) -> bool:
    """Whether the text is a path with that name; a name within a sentence is for people."""
    return text.startswith(name) or f"/{name}" in text


def test_each_name_on_disk_has_one_home() -> None:
    assert repeated_names(ROOT) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('path = "manifest.json"', True),
        ('path = f"{folder}/preview.png"', True),
        ('path = f"shards/{bucket}"', True),
        ('"""manifest.json is written last."""', False),
        ('help = "The dataset, or its manifest.json."', False),
        ('unit = "shards"', False),
    ],
)
def test_a_repeated_name_is_found(tmp_path: Path, code: str, found: bool) -> None:
    for path in ("datagen/dataset/layout.py", "training/a.py"):
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text(code)
    assert [line.split(":")[0] for line in repeated_names(tmp_path)] == ["training/a.py"] * found


def test_names_are_really_written_at_home() -> None:
    for home, names in NAMES.items():
        text = (ROOT / home).read_text(encoding="utf-8")
        assert all(f'"{name.rstrip("/")}"' in text for name in names), home
