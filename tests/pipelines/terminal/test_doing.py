"""What a command says of its steps."""

from __future__ import annotations

import pytest

from pipelines.terminal import doing
from tests.support.eventually import eventually


def test_a_long_step_is_named_and_named_again_and_a_short_one_is_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doing, "SILENT_SECONDS", 0.5)
    said: list[str] = []

    def lines() -> list[str]:
        said.extend(capfd.readouterr().err.splitlines())
        return said

    with doing.speaking():
        doing.doing("a short step")
        doing.doing("a long step")
        eventually(lambda: len(lines()) == 2, seconds=20)
        with doing.says_nothing():
            pass
        doing.doing("another short step")
    assert lines() == ["a long step ...", said[1]]
    assert said[1].startswith("a long step ... (")
