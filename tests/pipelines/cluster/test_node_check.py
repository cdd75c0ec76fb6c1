"""Nodes of a Ray cluster with another version of the code, or another time, are told."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest

from datagen.errors import FlowmapsrError
from pipelines.cluster import node_check
from training.machines import code_version


@pytest.mark.usefixtures("ray_cluster_address")
def test_nodes_say_their_version_and_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node_check.check_nodes()
    assert not caplog.messages

    monkeypatch.setattr(node_check, "code_version", lambda: "0.0.9 (code 00000000)")
    late = SimpleNamespace(time=lambda: time.time() - 3600)
    monkeypatch.setattr(node_check, "time", late)
    both = rf"this command has 0\.0\.9 \(code 0+\), but node \S+ \(\w+\) has {code_version()[:5]}"
    with pytest.raises(FlowmapsrError, match=both) as refused:
        node_check.check_nodes()
    assert code_version() in str(refused.value)
    (warning,) = caplog.messages
    assert re.search(
        r"clocks differ from this machine's: node \S+ \(\w+\) by \+3[56]\d\d s", warning
    )
