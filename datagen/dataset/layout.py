"""Names of the files and folders of a dataset, relative to its root."""

from __future__ import annotations

MANIFEST = "manifest.json"
"""Written last: a dataset is finished once it is there."""
MANIFESTS = "manifests"
"""The manifest of every state in which the dataset was finished, by its digest."""
SOURCES = "sources.jsonl"
"""Every photo offered to the dataset."""
REJECTED = "rejected.jsonl"
"""Every photo left out, with its reason."""
PREVIEW = "preview.png"
HISTOGRAMS = "histograms.png"
SHARDS = "shards"

PLAN = "plan.json"
"""Only while a build is open, as is `TASKS`."""
TASKS = "tasks"


def kept_path(digest: str) -> str:
    """The manifest of a finished state."""
    return f"{MANIFESTS}/{digest}.json"


def shard_path(bucket: str, split: str, task: int) -> str:
    """The shard with a task's samples of one bucket and split."""
    return f"{SHARDS}/{bucket}/{split}-{task:06d}.tar"


def record_path(shard: str) -> str:
    """The ShardRecord of a shard, given the path of its tar."""
    return shard.removesuffix(".tar") + ".json"


def task_index(shard: str) -> int:
    """The task that made a shard, given the path of its tar."""
    return int(shard.removesuffix(".tar").rpartition("-")[2])
