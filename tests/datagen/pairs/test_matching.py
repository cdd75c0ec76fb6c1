"""Published layouts match by settings; what is ambiguous or missing is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datagen.errors import FlowmapsrError
from datagen.pair_settings import PairSettings
from datagen.pairs.matching import MatchedPairs, match_pairs
from datagen.photos.sources import list_sources


def _matched(root: Path, names: list[str], **settings: Any) -> MatchedPairs:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    for place in ("hq", "lq", "csv"):
        if place in settings:
            settings[place] = str(root / settings[place])
    pairs = PairSettings.model_validate(settings)
    hq, lq = (list_sources([source]).files for source in (pairs.hq, pairs.lq))
    return match_pairs(pairs, hq=hq, lq=lq)


def _names(matched: MatchedPairs, root: Path) -> list[tuple[str, ...]]:
    return [tuple(str(Path(f.uri).relative_to(root)) for f in pair) for pair in matched.pairs]


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        pytest.param(
            {"hq": "4", "lq": "4", "match": "suffix", "hq_suffix": "_HR", "lq_suffix": "_LR4"},
            [("4/Canon_001_HR.png", "4/Canon_001_LR4.png"), ("4/N/1_HR.png", "4/N/1_LR4.png")],
            id="RealSR",
        ),
        pytest.param(
            {"hq": "HR", "lq": "LR", "match": "suffix", "hq_suffix": "_x4", "lq_suffix": "_x1"},
            [("HR/P_1_x4.png", "LR/P_1_x1.png"), ("HR/S_2_x4.png", "LR/S_2_x1.png")],
            id="DRealSR",
        ),
        pytest.param(
            {"hq": "gt", "lq": "lq"},
            [("gt/1.png", "lq/1.png"), ("gt/2.png", "lq/2.jpg")],
            id="StableSR",
        ),
        pytest.param(
            {"hq": "HR", "lq": "X4", "match": "suffix", "lq_suffix": "x4"},
            [("HR/0801.png", "X4/0801x4.png"), ("HR/0802.png", "X4/0802x4.png")],
            id="DIV2K",
        ),
        pytest.param(
            {"hq": "D", "lq": "D", "match": "suffix", "lq_suffix": "x4"},
            [("D/0801.png", "D/0801x4.png"), ("D/0802.png", "D/0802x4.png")],
            id="DIV2K in one folder",
        ),
    ],
)
def test_published_layouts_match(
    tmp_path: Path, settings: dict[str, Any], pairs: list[tuple[str, str]]
) -> None:
    matched = _matched(tmp_path, [name for pair in pairs for name in pair], **settings)
    assert _names(matched, tmp_path) == pairs
    assert matched.rejected == ()


def test_files_without_their_other_half_are_rejected(tmp_path: Path) -> None:
    names = ["gt/1.png", "gt/2.png", "lq/1.png", "lq/3.png"]
    matched = _matched(tmp_path, names, hq="gt", lq="lq")
    assert _names(matched, tmp_path) == [("gt/1.png", "lq/1.png")]
    assert [(Path(r.uri).name, r.reason) for r in matched.rejected] == [
        ("2.png", "no LQ for this HQ"),
        ("3.png", "no HQ for this LQ"),
    ]


def test_two_hq_for_one_lq_are_named(tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match=r"two photos for one place: .*1\.jpg and .*1\.png"):
        _matched(tmp_path, ["gt/1.png", "gt/1.jpg", "lq/1.png"], hq="gt", lq="lq")


def test_no_pair_at_all_names_the_settings(tmp_path: Path) -> None:
    with pytest.raises(FlowmapsrError, match=r"by match=name.*give the suffixes"):
        _matched(tmp_path, ["gt/1_HR.png", "lq/1_LR.png"], hq="gt", lq="lq")


_TABLE = {"hq": "gt", "lq": "lq", "match": "csv", "csv": "pairs.csv"}
_FILES = ["gt/a.png", "gt/b.png", "lq/1.png", "lq/2.png"]


def test_a_table_names_the_pairs(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("lq,hq\n2.png,a.png\n1.png,b.png\n")
    matched = _matched(tmp_path, _FILES, **_TABLE)
    assert _names(matched, tmp_path) == [("gt/a.png", "lq/2.png"), ("gt/b.png", "lq/1.png")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"hq,lq\na.png,9.png\n", r"line 2: lq '9\.png' is not in .*lq"),
        (b"hq,lq\na.png,1.png\nb.png,1.png\n", r"line 3: two HQ for one LQ: '1\.png' is in line 2"),
        (b"hq,lq\na.png,1.png\na.png,2.png\n", r"line 3: two LQ for one HQ: 'a\.png' is in line 2"),
        (b"hq;lq\na.png;1.png\n", r"columns hq and lq, separated by a comma; it names hq;lq"),
        (b"", r"it names none"),
        (b"hq,lq\na.png\n", r"line 2: give both hq and lq"),
        (b"hq,lq\n\xff\xfe,1.png\n", r"not a table of UTF-8 text"),
    ],
)
def test_an_unusable_table_is_refused(tmp_path: Path, table: bytes, message: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(table)
    with pytest.raises(FlowmapsrError, match=message):
        _matched(tmp_path, _FILES, **_TABLE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"match": "csv"}, "belong together"),
        ({"match": "suffix"}, "belong together"),
        ({"lq_suffix": "x4"}, "belong together"),
        ({"lq": "/a"}, "hq and lq are the same photos"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairSettings.model_validate({"hq": "/a", "lq": "/b"} | settings)
