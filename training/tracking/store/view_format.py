"""A page of MLflow's that shows an experiment as we want: which runs, columns, order and charts.

MLflow keeps such a shared view in a tag of the experiment. Its format is internal to MLflow's page,
and this file alone knows it: read in the sources of 3.17.2, and opened there in Chromium by a test.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

READ_BY = 3
"""The major version of MLflow whose pages read the format. The pages of 2 have no view of trainings
to open; those of 4 are not known."""
TAG = "mlflow.sharedViewState."
COLOR = "mlflow.runColor"
"""The tag with a run's color; without it the page draws one by lot, and two runs may look alike."""
COLORS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
"""As many as the page shows charts of at once."""
ABREAST = 3
"""Charts of a section beside each other."""


Chart = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """Charts below a heading."""

    name: str
    charts: tuple[Chart, ...] = ()
    is_open: bool = True
    across: int = ABREAST
    height: int = 300
    """Pixels of a chart."""


@dataclass(frozen=True)
class View:
    """What a page shows. Names of columns and of the order are those of `metric` and others."""

    filter: str
    order: str
    ascending: bool
    columns: tuple[str, ...]
    sections: tuple[Section, ...] = field(default=())


START_TIME, DATASET = "attributes.start_time", "attributes.`Dataset`"


def metric(name: str) -> str:
    return f"metrics.`{name}`"


def param(name: str) -> str:
    return f"params.`{name}`"


def tag(name: str) -> str:
    return f"tags.`{name}`"


def section_of(name: str) -> str:
    """The section in which MLflow's page puts the chart of a metric."""
    return name.rpartition("/")[0] or "Model metrics"


def line(*metrics: str) -> Chart:
    """Curves of metrics over the step, in different dashes."""
    return {
        "type": "LINE",
        "metricKey": metrics[0],
        "selectedMetricKeys": metrics,
        "displayName": metrics[0],
        "xAxisKey": "step",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def bar(name: str) -> Chart:
    """The last value of a metric, a bar for each run."""
    return {"type": "BAR", "metricKey": name, "displayName": name}


def scatter(setting: str, quality: str) -> Chart:
    """A point for each run: a setting against a metric."""
    return {
        "type": "SCATTER",
        "xaxis": {"key": setting, "type": "PARAM"},
        "yaxis": {"key": quality, "type": "METRIC"},
        "runsCountToCompare": 100,
        "displayName": f"{quality} by {setting}",
    }


def parallel(settings: Sequence[str], quality: str) -> Chart:
    """A line for each run, through all its settings to a metric."""
    return {"type": "PARALLEL", "selectedParams": [*settings], "selectedMetrics": [quality]}


def pictures(keys: Sequence[str], step: int) -> Chart:
    """Pictures at a step, a column for each run, with a slider over the steps."""
    return {"type": "IMAGE", "imageKeys": [*keys], "step": step, "showRunParams": False}


def written(view: View) -> str:
    """The value of the view's tag."""
    sections = {f"section-{number}": section for number, section in enumerate(view.sections)}
    charts = [
        {"metricSectionId": key, "deleted": False, "isGenerated": False, **chart}
        for key, section in sections.items()
        for chart in section.charts
    ]
    state = {
        "searchFilter": view.filter,
        "orderByKey": view.order,
        "orderByAsc": view.ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": view.columns,
        "columnOrder": view.columns,
        "columnWidths": {name: _width(name) for name in view.columns},
        "runsHiddenMode": "FIRST_10_RUNS",
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
        "compareRunSections": [
            {
                "uuid": key,
                "name": section.name,
                "display": section.is_open,
                "columns": section.across,
                "cardHeight": section.height,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for key, section in sections.items()
        ],
        "compareRunCharts": [{"uuid": f"chart-{n}", **chart} for n, chart in enumerate(charts)],
    }
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    return f"deflate;{base64.b64encode(packed).decode()}"


def address(
    experiment_id: str, view: View, key: str | None, *, charts: bool = False, major: int = READ_BY
) -> str:
    """The page, without the address of the server.

    Args:
        key: of a view that is kept; without it the same runs are shown in the same order.
        major: version of the server, of which those before 3 have no tabs.
    """
    query = {"workflowType": "machine_learning"}
    if key is not None:
        query["viewStateShareKey"] = key
    else:
        order = {"orderByKey": view.order, "orderByAsc": str(view.ascending).lower()}
        query |= {"searchFilter": view.filter, **order, "startTime": "ALL"}
    if charts:
        query["compareRunsMode"] = "CHART"
    tab = "/runs" if major >= READ_BY else ""
    return f"/#/experiments/{experiment_id}{tab}?{urlencode(query)}"


def _width(column: str) -> int:
    """Pixels of a column in which its name can be read."""
    if column == DATASET:
        return 200
    return min(max(90, 30 + 7 * len(column.partition("`")[2])), 230)
