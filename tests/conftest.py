"""What all tests share: an isolated environment, one Prefect, one Ray."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.support.tiny", "tests.support.s3", "tests.support.small_disk"]

SERVERS = {"prefect_server", "ray_cluster_address"}
_HOME = tempfile.mkdtemp(prefix="flowmapsr-tests-")

# Before any of the libraries is imported, and inherited by every process that a test starts.
os.environ.update(
    DO_NOT_TRACK="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_TRACKING_URI=f"sqlite:///{_HOME}/mlflow.db",
    NO_ALBUMENTATIONS_UPDATE="1",
    PREFECT_HOME=f"{_HOME}/prefect",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",  # else the tests' processes come first
)
for _address in ("PREFECT_API_URL", "PREFECT_API_KEY", "RAY_ADDRESS"):
    os.environ.pop(_address, None)


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from all processes that tests start, so that results are the same everywhere,
    and bit for bit. Only `pytest -m gpu` sees them."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("it needs a CUDA device, which only `-m gpu` shows to tests")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Divides the tests into groups, each of which one of xdist's processes runs.

    A group is a file. Files that use the session's Prefect or Ray are one group, so that only one
    process starts these. Long groups come first: one that began last would keep a single process
    busy in the end.
    """
    order = {"pipelines": 1, "training": 2}
    files = {item.nodeid: item.nodeid.split("::")[0] for item in items}
    with_servers = {
        files[item.nodeid] for item in items if SERVERS & set(getattr(item, "fixturenames", ()))
    }
    for item in items:
        file = files[item.nodeid]
        group = "servers" if file in with_servers else file
        item.add_marker(pytest.mark.xdist_group(group))

    def rank(item: pytest.Item) -> int:
        file = files[item.nodeid]
        return 0 if file in with_servers else order.get(file.split("/")[1], 3)

    items.sort(key=rank)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """A Prefect server for the whole session; its address."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def ray_cluster_address() -> Iterator[str]:
    """A Ray cluster of two slots for the whole session, to which this process is connected."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=150_000_000,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
