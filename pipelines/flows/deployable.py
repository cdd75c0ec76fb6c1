"""The flows that can be deployed."""

from __future__ import annotations

from typing import Any

from prefect import Flow

from pipelines.flows.benchmark import benchmark
from pipelines.flows.dataset import build_dataset
from pipelines.flows.full import full
from pipelines.flows.training import train

FLOWS: dict[str, Flow[Any, Any]] = {
    "dataset": build_dataset,
    "training": train,
    "full": full,
    "benchmark": benchmark,
}
"""By the part of a recipe that they run."""
