"""The command on a Ray cluster of two nodes, from S3 to S3 over HTTP; one node is lost."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from datagen.build.in_process import build_in_process
from datagen.review.verify import verify_dataset
from pipelines.recipes.load import dataset_recipe
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.processes import kill_tree
from tests.support.ray_processes import head_words, start_node
from tests.support.s3 import FaultyS3

Run = Callable[..., Any]
SETTINGS = ("samples_per_photo=6", "samples_per_shard=3", "filters.max_megapixels=1")


@pytest.fixture
def two_nodes(faulty_s3: FaultyS3, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The cluster's address, and the node that may be lost."""
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as nodes:
        head = start_node(*head_words(address), "--num-cpus=1", log=tmp_path / "head.log")
        nodes.callback(kill_tree, head)
        other = start_node(f"--address={address}", "--num-cpus=1", log=tmp_path / "other.log")
        nodes.callback(kill_tree, other)
        yield address, other


def objects(s3: FaultyS3, prefix: str) -> dict[str, str]:
    """SHA-256 of everything below a prefix."""
    pages = s3.client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {
        key.removeprefix(prefix): hashlib.sha256(
            s3.client.get_object(Bucket=s3.bucket, Key=key)["Body"].read()
        ).hexdigest()
        for key in keys
    }


def test_a_lost_node_and_a_bad_network_change_no_byte(
    two_nodes: tuple[str, subprocess.Popen[bytes]],
    faulty_s3: FaultyS3,
    prefect_server: str,
    photos: Path,
    start: Run,
    finished: Run,
) -> None:
    s3, (address, other) = faulty_s3, two_nodes
    for path in photos.iterdir():
        s3.client.upload_file(str(path), s3.bucket, f"photos/{path.name}")
    words = [f"sources=[s3://{s3.bucket}/photos]", *SETTINGS]
    quiet = dataset_recipe("demo", [*words, f"output=s3://{s3.bucket}/quiet"])
    build_in_process(quiet)

    env = {"RAY_ADDRESS": address, "PREFECT_API_URL": prefect_server}
    s3.fail("status", "GET", times=3)
    s3.fail("reset", "PUT", times=2)
    process = start(
        *("dataset", "build", "demo", *words, "workers=2", "--json"),
        f"output=s3://{s3.bucket}/stormy",
        env={**os.environ, **env},
    )
    eventually(lambda: process.poll() is not None or objects(s3, "stormy/tasks/"))
    s3.fail("cut_download", "GET", times=2, after=1000)
    s3.fail("cut_upload", "PUT", times=2, after=1000)
    kill_tree(other)
    ended = finished(process)
    assert ended.code == 0, ended.err
    assert ended.json["num_samples"] == 36
    assert objects(s3, "stormy/") == objects(s3, "quiet/")
    assert verify_dataset(f"s3://{s3.bucket}/stormy") == []
