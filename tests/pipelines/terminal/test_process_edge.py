"""What a command prints with `--json`."""

from __future__ import annotations

import json
import math

from pipelines.terminal.process_edge import Output, VerbResult


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    output = Output(as_json=True)
    output.say(VerbResult({"psnr": math.inf, "runs": [{"loss": math.nan, "step": 3}]}, ["text"]))
    assert json.loads(output.text) == {"psnr": None, "runs": [{"loss": None, "step": 3}]}
    output.say(VerbResult({"name": "é", "value": 0.1}, []))
    assert output.text == '{"name": "é", "value": 0.1}'
