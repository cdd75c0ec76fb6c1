"""Enforces imports pipelines -> training -> datagen and the files that may import a library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("datagen", "training", "infra", "pipelines")
"""Each may import itself and those before it."""

HOMES = {
    "prefect": ("pipelines/orchestration/", "pipelines/flows/", "pipelines/environment.py"),
    "ray": ("pipelines/cluster/",),
    "deepspeed": ("training/engine/",),
    "mlflow": ("training/tracking/", "training/weights/initialize.py"),
    "boto3": ("datagen/io/s3_client.py", "infra/local_stack/servers.py"),
    "botocore": ("datagen/io/", "infra/local_stack/servers.py"),
    "webdataset": (),
    "peft": ("training/flowmap/lora.py",),
    "diffusers": ("training/flowmap/", "training/weights/", "datagen/samples/autoencoder_codec.py"),
    "torchvision": (),
    "pyiqa": ("training/evaluation/metrics/iqa.py",),
    "spandrel": ("training/evaluation/other_networks/spandrel_network.py",),
    "ncnn": ("training/evaluation/other_networks/ncnn_network.py",),
}
"""The only files or folders that may import a library."""

TORCH_FREE = (
    *(f"datagen/{name}" for name in ("settings", "io/", "photos/", "degradation/", "dataset/")),
    *(f"datagen/{name}" for name in ("build/plan", "build/survey", "review/")),
    *("training/settings/", "training/run_dir/", "training/inference/pictures/"),
    *("pipelines/terminal/", "pipelines/recipes/"),
)
"""Files and folders that a launcher imports, which must not wait for torch."""


def violations(root: Path) -> list[str]:
    """Every violation of the import rules below `root`, as `path:line: what`."""
    return [
        f"{path}:{line}: {what}"
        for layer in LAYERS
        for file in sorted((root / layer).rglob("*.py"))
        for path in [file.relative_to(root).as_posix()]
        for line, what in _breaches(path, ast.parse(file.read_text(encoding="utf-8")))
    ]


def _breaches(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    name = path.rsplit("/", 1)[-1]
    if name == "utils.py":
        yield 1, "no utils.py: name a module after what it does"
    for line, module in _imports(tree):
        if name == "__init__.py":
            yield line, "__init__.py re-exports nothing"
        if module.startswith("."):
            yield line, "relative import; write the whole name"
        package = module.split(".")[0]
        if package in LAYERS and LAYERS.index(package) > LAYERS.index(path.split("/")[0]):
            yield line, f"{package} is downstream: the street is one-way"
        if package in HOMES and not path.startswith(HOMES[package]):
            yield line, f"{package} belongs only in {', '.join(HOMES[package]) or 'no file'}"
        if package == "torch" and path.startswith(TORCH_FREE):
            yield line, "imports no torch"


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                yield node.lineno, "." * node.level + (node.module or "")
            case ast.Call(args=[ast.Constant(value=str(module)), *_]) if _is_import(node.func):
                yield node.lineno, module


def _is_import(function: ast.expr) -> bool:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in ("import_module", "__import__")
    return False


def test_imports_go_one_way_and_each_library_is_imported_in_its_own_files() -> None:
    assert violations(ROOT) == []


def circles(root: Path, *, of_folders: bool) -> list[list[str]]:
    """Groups of files, or of folders and the files beside them, that import each other in a circle.

    Lazy and type-only imports count: a reader has to follow those too. A file directly inside a
    layer (`training/loop.py`) is a group alone.
    """
    files = {
        file.relative_to(root).with_suffix("").as_posix().replace("/", "."): file
        for layer in LAYERS
        for file in (root / layer).rglob("*.py")
        if file.name != "__init__.py"
    }
    arrows: dict[str, set[str]] = {}
    for name, file in files.items():
        source = _folder(name) if of_folders else name
        for module in _modules(ast.parse(file.read_text(encoding="utf-8"))):
            if module in files:
                target = _folder(module) if of_folders else module
                arrows.setdefault(source, set()).add(target)
                arrows.setdefault(target, set())
    for source, targets in arrows.items():
        targets.discard(source)
    reached = {name: _reachable(arrows, name) for name in arrows}
    groups = {
        tuple(sorted({name, *(other for other in reached[name] if name in reached[other])}))
        for name in arrows
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def _folder(module: str) -> str:
    parts = module.split(".")
    return module if len(parts) == 2 else ".".join(parts[:2])


def _modules(tree: ast.Module) -> Iterator[str]:
    """Everything imported, with `from a import b` as both `a` and `a.b`."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)


def _reachable(arrows: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        for target in arrows[ahead.pop()] - found:
            found.add(target)
            ahead.append(target)
    return found


@pytest.mark.parametrize("of_folders", [False, True])
def test_nothing_imports_in_a_circle(of_folders: bool) -> None:
    assert circles(ROOT, of_folders=of_folders) == []


@pytest.mark.parametrize(
    ("of_folders", "expected"),
    [(False, []), (True, [["datagen.a", "datagen.b", "datagen.floor"]])],
)
def test_a_circle_is_found(tmp_path: Path, of_folders: bool, expected: list[list[str]]) -> None:
    code = {
        "datagen/a/one.py": "def f():\n    from datagen.b.two import x",
        "datagen/b/two.py": "from datagen import floor",
        "datagen/floor.py": "if TYPE_CHECKING:\n    from datagen.a import other",
        "datagen/a/other.py": "",
    }
    for path, text in code.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert circles(tmp_path, of_folders=of_folders) == expected


def test_all_layers_are_found() -> None:
    assert all(list((ROOT / layer).rglob("*.py")) for layer in LAYERS)


@pytest.mark.parametrize(
    ("path", "code", "expected"),
    [
        ("datagen/a.py", "import training.loop", "one-way"),
        ("datagen/a.py", "from pipelines import pool", "one-way"),
        ("training/a.py", "def f():\n    from pipelines.cluster.actor_pool import x", "one-way"),
        ("training/a.py", "import ray.train", "ray belongs only"),
        ("datagen/a.py", "from prefect import flow", "prefect belongs only"),
        ("training/loop.py", "import deepspeed", "deepspeed belongs only"),
        ("pipelines/a.py", "import mlflow", "mlflow belongs only"),
        ("training/a.py", "import boto3", "boto3 belongs only"),
        ("training/a.py", "from webdataset import WebLoader", "webdataset belongs only"),
        ("training/a.py", "from importlib import import_module\nimport_module('ray')", "ray"),
        ("training/settings/a.py", "import torch", "no torch"),
        ("training/models/a.py", "from torchvision.transforms import v2", "torchvision"),
        ("training/utils.py", "", "no utils.py"),
        ("training/__init__.py", "from training.loop import run", "re-exports nothing"),
        ("training/a.py", "from .loop import run", "relative"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, path: str, code: str, expected: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(code)
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(path) and expected in found[0]


def test_allowed_imports_pass(tmp_path: Path) -> None:
    allowed = {
        "pipelines/flows/a.py": "from prefect import flow\nimport training.loop",
        "pipelines/cluster/a.py": "import ray",
        "training/engine/engine.py": "import deepspeed\nimport datagen.settings",
        "training/rays.py": "import raymarching",
        "datagen/io/s3_client.py": "import boto3",
    }
    for path, code in allowed.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    assert violations(tmp_path) == []
