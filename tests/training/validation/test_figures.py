"""The table of held-out losses by time."""

from __future__ import annotations

import json

from training.validation.figures import over_time_table


def test_losses_are_averaged_at_the_nearest_time_of_a_grid() -> None:
    table = over_time_table(
        {
            "loss/fm": [(0.0, 1.0), (0.51, 2.0), (0.5, 4.0), (1.0, 8.0)],
            "loss/sd": [(0.5, 0.25)],
            "loss/none": [],
        }
    )
    assert json.loads(table) == {
        "columns": ["t", "loss/fm", "loss/fm samples", "loss/sd", "loss/sd samples"],
        "data": [[0.0, 1.0, 1, "", ""], [0.5, 3.0, 2, 0.25, 1], [1.0, 8.0, 1, "", ""]],
    }
    assert over_time_table({"loss/fm": []}) == over_time_table({}) == ""
