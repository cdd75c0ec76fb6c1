"""`dataset inspect`: what a dataset holds, and one of its samples as pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Run = Callable[..., object]


def _sample(dataset: Path, run: Run) -> str:
    """A key, from the message for too short a one."""
    ended = run("dataset", "inspect", str(dataset), "--key", "")
    assert ended.code == 1 and "12 keys begin with ''" in ended.err
    return ended.err.partition("(")[2].partition(",")[0]


def test_inspect_shows_what_was_drawn(dataset: Path, invoke: Run) -> None:
    ended = invoke("dataset", "inspect", str(dataset))
    assert ended.code == 0
    for part in (
        "12 samples in",
        "JPEG quality",
        "median",
        "histograms.png",
        "dataset verify",
        "1 finished state",
    ):
        assert part in ended.out
    stats = invoke("dataset", "inspect", str(dataset), "--json").json["stats"]
    assert sum(stats["counts"]["scale"]) == 12


def test_inspect_decodes_a_sample_into_the_current_folder(
    dataset: Path, tmp_path: Path, invoke: Run
) -> None:
    key = _sample(dataset, invoke)
    ended = invoke("dataset", "inspect", str(dataset), "--key", key)
    assert ended.code == 0, ended.err
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{key}-{name}.png" for name in ("hq", "lq", "neg")
    }
    assert f"key: {key}" in ended.out and f"{key}-neg.png" in ended.out
    (tmp_path / f"{key}-lq.png").write_bytes(b"mine")
    again = invoke("dataset", "inspect", str(dataset), "--key", key)
    assert again.code == 1 and "another file has this name" in again.err
    other = invoke("dataset", "inspect", str(dataset), "--key", key, "--output", "other", "--json")
    assert other.json["sample"]["key"] == key
    assert all(Path(file).is_file() for file in other.json["files"])


def test_verify_can_make_samples_again(dataset: Path, invoke: Run) -> None:
    ended = invoke("dataset", "verify", str(dataset), "--deep")
    assert ended.code == 0 and "was made again and is the same." in ended.out
    assert (
        invoke("dataset", "verify", str(dataset), "--deep", "--json").json["not_recomputed"] == []
    )


def test_inspect_refuses_an_unknown_key(dataset: Path, tmp_path: Path, invoke: Run) -> None:
    ended = invoke("dataset", "inspect", str(dataset), "--key", "not-a-key")
    assert ended.code == 1 and "near ones are" in ended.err
    assert not list(tmp_path.glob("*.png"))
