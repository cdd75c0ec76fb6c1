"""What travels to the machine with the GPU is weighed; wheels that do not fit it are refused."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.benchmarks.gpu.bundle import SOURCES, WHEELS, check_wheels, report


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text(".gpu/\nignored/\n")
    for name, size in {".gpu/photos/a.jpg": 1000, "untracked": 500, "ignored/large": 10**6}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    for name in ("packages.tar.xz", "run.sh"):
        (tmp_path / ".gpu" / name).write_bytes(bytes(100))
    return tmp_path


@pytest.mark.parametrize(("limit", "code"), [(1720, 0), (1700, 1)])
def test_what_git_ignores_stays(
    tree: Path, limit: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tree, limit=limit) == code
    assert ("too many" in capsys.readouterr().err) == bool(code)


def test_wheels_must_fit(tmp_path: Path) -> None:
    names = [name.replace("-", "_") for name in (*WHEELS, *SOURCES)]
    for name in names:
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
    check_wheels(tmp_path)
    (tmp_path / "simsimd-1.0-py3-none-any.whl").rename(
        tmp_path / "simsimd-1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    )
    (tmp_path / "hjson-1.0-py3-none-any.whl").unlink()
    with zipfile.ZipFile(tmp_path / "deepspeed-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("deepspeed/operator.so", "")
    with pytest.raises(SystemExit) as refused:
        check_wheels(tmp_path)
    said = str(refused.value)
    assert "hjson is missing" in said and "simsimd-1.0-cp311" in said
    assert "deepspeed-1.0-py3-none-any.whl is named as pure Python" in said
