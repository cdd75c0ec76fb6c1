"""What Prometheus and Grafana are given: metrics that exist, alerts that fire and queries that can
be read."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.prometheus import BUILD, TRAINING

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "infra/monitoring"
OURS = {f"ray_{name}" for name in (*TRAINING, *BUILD)}


def panels() -> dict[str, list[str]]:
    """The queries of each panel of the dashboard, by its title."""
    dashboard = json.loads((MONITORING / "grafana/flowmapsr.json").read_text())
    found = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return {panel["title"]: [one["expr"] for one in panel["targets"]] for panel in found}


def queries() -> list[str]:
    return [query for found in panels().values() for query in found]


def alerts() -> dict[str, Any]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def names(queries: list[str]) -> set[str]:
    """The metrics of Ray and of us in some queries."""
    return set(re.findall(r"\bray_\w+", " ".join(queries)))


def test_every_metric_that_is_asked_for_exists() -> None:
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    reporter = Path(spec.origin).parent / "dashboard/modules/reporter/reporter_agent.py"
    of_ray = {f"ray_{name}" for name in re.findall(r'"(node_\w+)"', reporter.read_text())}
    asked = names([*queries(), *(alert["expr"] for alert in alerts().values())])
    assert asked <= OURS | of_ray
    assert "ray_node_disk_free" in of_ray


def test_every_metric_of_ours_is_on_the_dashboard_and_in_the_documentation() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    assert names(queries()) >= OURS
    assert not [name for name in (*OURS, *alerts()) if f"`{name}`" not in page]


def test_every_alert_is_tested_to_fire_and_not_to_fire() -> None:
    tests = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    tried = {
        (one["alertname"], bool(one["exp_alerts"]))
        for test in tests
        for one in test["alert_rule_test"]
    }
    assert tried == {(name, fires) for name in alerts() for fires in (True, False)}


@pytest.mark.monitoring
@pytest.mark.parametrize(
    "words", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")]
)
def test_promtool_accepts_the_configuration_and_the_alerts(words: tuple[str, ...]) -> None:
    ended = subprocess.run(["promtool", *words], cwd=MONITORING, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.monitoring
def test_promtool_can_read_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"query{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    ended = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(rules)} rules found" in ended.stdout
