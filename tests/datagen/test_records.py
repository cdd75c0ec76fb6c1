"""Records are read with clear errors, compared by setting, and always written the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from datagen.errors import first_line
from datagen.records import FrozenModel, UnreadableRecord, diff, flatten, read_record, to_json


class Note(FrozenModel):
    version: Literal[1] = 1
    text: str = ""
    numbers: tuple[int, ...] = ()


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    note = Note(text="ä", numbers=(1, 2))
    (tmp_path / "note.json").write_bytes(to_json(note))
    assert read_record(tmp_path / "note.json", Note, remedy="") == note
    assert read_record(tmp_path / "nothing.json", Note, remedy="") is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"version": 2}', "version: Input should be 1, not 2"),
        ('{"numbers": [1, "x"]}', r"numbers\.1: .* integer.*, not 'x'"),
        ('{"text": {}}', r"text: Input should be a valid string\)"),
        ("", "Invalid JSON"),
    ],
)
def test_an_unreadable_record_names_file_field_value_and_remedy(
    tmp_path: Path, content: str, fault: str
) -> None:
    path = tmp_path / "note.json"
    path.write_text(content)
    with pytest.raises(UnreadableRecord, match=rf"note\.json .*{fault}.*; write it again"):
        read_record(path, Note, remedy="write it again")


def test_settings_that_differ_are_named() -> None:
    old = {"a": {"b": 1, "list": [{"x": 1}, {"x": 2}]}, "plain": [1, 2], "gone": True}
    new = {"a": {"b": 1.0, "list": [{"x": 1}, {"x": 3}]}, "plain": [1, 3], "new": None}
    assert [str(change) for change in diff(old, new)] == [
        "a.list.1.x was 2, is 3",
        "gone was True, is not set",
        "new was not set, is None",
        "plain was [1, 2], is [1, 3]",
    ]
    assert diff(old, old) == []


def test_nested_settings_are_flattened() -> None:
    values = {"a": {"b": [{"c": 1}], "d": {}}, "e": [1, 2]}
    assert flatten(values) == {"a.b.0.c": "1", "e": "[1, 2]"}


def test_the_first_line_of_an_error_is_never_empty() -> None:
    assert first_line(ValueError("\n one \ntwo")) == "one "
    assert first_line(ValueError("")) == "ValueError"
