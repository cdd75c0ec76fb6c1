"""Asks every node of a Ray cluster for its version of flowmapsr and its clock, before any works."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datagen.errors import first_line
from training.machines import code_version, require_same_code, warn_of_clocks

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds for the answers of all nodes; one that is too busy does not keep the others from work."""
HERE = "this command"


def check_nodes() -> None:
    """Compares the nodes that take work with this process; warns of clocks that differ.

    Raises:
        FlowmapsrError: a node has another version of flowmapsr; names both.
    """

    def version_and_time() -> tuple[str, float]:
        """Travels as it is, not by its name: a node may have other code, or none."""
        import time

        try:
            from training.machines import code_version
        except ImportError:
            return "one that cannot say its version, or none", time.time()
        return code_version(), time.time()

    call: Any = ray.remote(num_cpus=0, max_retries=0)(version_and_time)
    begun, asked = time.time(), {}
    for node in ray.nodes():
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU")):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            asked[call.options(scheduling_strategy=there).remote()] = name
    if not asked:  # those that come later say it with their first work
        return
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
    ended = time.time()
    why = dict.fromkeys(silent, "it is silent")
    versions, ahead = {HERE: code_version()}, {}
    for one in answered:
        try:
            versions[asked[one]], clock = ray.get(one)
        except RayError as error:
            why[one] = first_line(error)
        else:
            ahead[asked[one]] = min(clock - begun, 0) + max(clock - ended, 0)
    for one, reason in why.items():
        log.warning("%s does not say whether it has the same flowmapsr: %s", asked[one], reason)
    warn_of_clocks(ahead)
    require_same_code(versions, here=HERE)
