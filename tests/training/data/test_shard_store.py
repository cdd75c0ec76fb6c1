"""Samples of shards on a disk and on S3: equal bytes; the cache is complete, shared and bounded."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pytest

from datagen.dataset.manifest import Dataset, Manifest
from datagen.dataset.shards import DamagedShard
from datagen.errors import FlowmapsrError
from tests.support.s3 import FaultyS3
from tests.support.tiny import WARMUP, RunMaker
from training.data import shard_cache
from training.data.bucket_mix import bucket_shares
from training.data.planned import SampleLocation
from training.data.shard_cache import CacheUnusable, ShardCache, check_cache
from training.data.shard_store import ShardStore
from training.settings.stage import StageSettings


@pytest.fixture
def remote(dataset: Path, manifest: Manifest, faulty_s3: FaultyS3) -> str:
    """The dataset's shards in a bucket."""
    for shard in manifest.shards:
        body = (dataset / shard.path).read_bytes()
        faulty_s3.client.put_object(Bucket=faulty_s3.bucket, Key=f"data/{shard.path}", Body=body)
    return f"s3://{faulty_s3.bucket}/data"


def _locations(manifest: Manifest) -> list[SampleLocation]:
    return [SampleLocation(shard, i) for shard in manifest.shards for i in range(shard.num_samples)]


def _read(store: ShardStore, locations: Iterable[SampleLocation]) -> list[tuple[str, bytes]]:
    samples = [store.read(location) for location in locations]
    return [(sample.key, bytes(sample.latents)) for sample in samples]


def _copies(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {"lock"}


@pytest.mark.parametrize("place", ["disk", "S3"])
def test_a_shard_that_is_replaced_while_it_is_in_use_is_damaged_and_not_read_on(
    dataset: Path,
    manifest: Manifest,
    remote: str,
    faulty_s3: FaultyS3,
    tmp_path: Path,
    place: str,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    first, second, _ = manifest.shards
    assert first.bytes == second.bytes, "samples at the same places"
    store = ShardStore(str(copy) if place == "disk" else remote)
    touched, replaced = SampleLocation(second, 0), SampleLocation(first, 0)
    before = _read(store, [touched, replaced])
    os.utime(copy / second.path, ns=(1, 1))
    assert _read(store, [touched, replaced, touched]) == [*before, before[0]]

    other = (dataset / second.path).read_bytes()
    (copy / first.path).write_bytes(other)
    faulty_s3.client.put_object(Bucket=faulty_s3.bucket, Key=f"data/{first.path}", Body=other)
    for _ in range(2):
        with pytest.raises(DamagedShard, match="checksum"):
            store.read(replaced)


def test_concurrent_readers_download_each_shard_once(
    dataset: Path, manifest: Manifest, remote: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    """Four stores of one folder act like four processes: file locks treat them alike."""
    expected = _read(ShardStore(str(dataset)), _locations(manifest))
    faulty_s3.fail("cut_download", "GET", after=1000)  # the first one is lost half-way
    stores = [
        ShardStore(remote, cache=ShardCache(tmp_path / "cache", limit=10**9)) for _ in range(4)
    ]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda store: _read(store, _locations(manifest)), stores * 2))
    assert all(one == expected for one in found)
    assert faulty_s3.requests["GET"] == len(manifest.shards) + 1
    cache = ShardCache(tmp_path / "cache", limit=10**9)
    assert _copies(cache) == {f"{shard.sha256}.tar" for shard in manifest.shards}


def test_a_download_that_ends_between_look_and_lock_is_not_made_again(
    manifest: Manifest,
    remote: str,
    faulty_s3: FaultyS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = manifest.shards[0]
    uri = f"{remote}/{shard.path}"
    late, other = (ShardCache(tmp_path, limit=10**9) for _ in range(2))
    lock = late._locked

    def lock_late(path: Path) -> AbstractContextManager[IO[bytes]]:
        other.add(uri, shard)
        return lock(path)

    monkeypatch.setattr(late, "_locked", lock_late)
    assert late.add(uri, shard) is None
    assert faulty_s3.requests["GET"] == 1
    assert _copies(late) == {f"{shard.sha256}.tar"}


def test_the_least_recently_used_copies_are_evicted(
    manifest: Manifest,
    remote: str,
    faulty_s3: FaultyS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_cache, "_TOUCH_SECONDS", 0)
    first, second, third = manifest.shards
    cache = ShardCache(tmp_path, limit=first.bytes + second.bytes)
    store = ShardStore(remote, cache=cache)
    before = _read(store, _locations(manifest)[:1])
    for shard in (second, first, third):
        store.read(SampleLocation(shard, 0))
    assert _copies(cache) == {f"{shard.sha256}.tar" for shard in (first, third)}
    assert faulty_s3.requests["GET"] == 3
    cache.remove(first)  # as another process may, at any time
    assert _read(store, _locations(manifest)[:1]) == before
    assert faulty_s3.requests["GET"] == 4
    cache.remove(first)
    store.fetch(first)
    assert faulty_s3.requests["GET"] == 5
    assert _copies(cache) == {f"{shard.sha256}.tar" for shard in (first, third)}


def test_leftovers_of_a_killed_process_do_not_block_the_cache(
    manifest: Manifest, remote: str, tmp_path: Path
) -> None:
    first, second, third = manifest.shards
    cache = ShardCache(tmp_path, limit=first.bytes + second.bytes)
    code = (
        "import fcntl, sys, time\n"
        "files = [open(path, 'wb') for path in sys.argv[1:]]\n"
        "for file in files:\n"
        "    fcntl.flock(file, fcntl.LOCK_EX)\n"
        f"    file.write(bytes({first.bytes - 1000})); file.flush()\n"
        "print('writing', flush=True)\n"
        "time.sleep(100)\n"
    )
    partial = [str(tmp_path / f"{shard.sha256}.part") for shard in (first, third)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *partial], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    store = ShardStore(remote, cache=cache)
    reading = threading.Thread(target=store.read, args=(SampleLocation(first, 0),))
    reading.start()
    reading.join(0.3)
    assert reading.is_alive()  # waits for the process that downloads the shard
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reading.join(30)
    assert not reading.is_alive()
    store.read(SampleLocation(second, 0))  # has no space for it and the dead process's file
    assert _copies(cache) == {f"{shard.sha256}.tar" for shard in (first, second)}


def test_a_download_in_progress_is_not_taken_for_a_leftover(
    manifest: Manifest, remote: str, tmp_path: Path
) -> None:
    first, second, _ = manifest.shards
    partial = tmp_path / f"{first.sha256}.part"
    partial.write_bytes(bytes(first.bytes))
    with open(partial) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        cache = ShardCache(tmp_path, limit=second.bytes)
        ShardStore(remote, cache=cache).read(SampleLocation(second, 0))
        assert partial.exists()


def test_a_leftover_is_removed_under_its_lock(
    manifest: Manifest, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a process that needs that shard could use a file that is about to vanish."""
    first, second, _ = manifest.shards
    partial = tmp_path / f"{first.sha256}.part"
    partial.write_bytes(bytes(first.bytes))
    unlink, could_be_taken = Path.unlink, []

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path == partial:
            with open(path) as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    could_be_taken.append(True)
                except BlockingIOError:
                    could_be_taken.append(False)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    cache = ShardCache(tmp_path, limit=second.bytes)
    ShardStore(remote, cache=cache).read(SampleLocation(second, 0))
    assert could_be_taken == [False]
    assert _copies(cache) == {f"{second.sha256}.tar"}


def test_a_copy_that_vanishes_during_its_download_is_downloaded_again(
    dataset: Path,
    manifest: Manifest,
    remote: str,
    faulty_s3: FaultyS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = manifest.shards[0]
    cache = ShardCache(tmp_path / "cache", limit=10**9)
    index_shard, times = shard_cache.index_shard, []

    def cleared(*arguments: Any, **words: Any) -> Any:
        found = index_shard(*arguments, **words)
        if not times:
            shutil.rmtree(cache.folder)
        times.append(1)
        return found

    monkeypatch.setattr(shard_cache, "index_shard", cleared)
    cache.add(f"{remote}/{shard.path}", shard)
    assert len(times) == faulty_s3.requests["GET"] == 2
    assert Path(cache.path(shard)).read_bytes() == (dataset / shard.path).read_bytes()


def test_a_full_disk_is_reported_once_and_samples_are_still_read(
    dataset: Path, manifest: Manifest, remote: str, tmp_path: Path
) -> None:
    """A limit on the size of files acts like a full disk and works on every system."""
    code = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "from datagen.dataset.manifest import load_manifest\n"
        "from training.data.planned import SampleLocation\n"
        "from training.data.shard_cache import ShardCache\n"
        "from training.data.shard_store import ShardStore\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        "dataset, remote, cache = sys.argv[1:]\n"
        "store = ShardStore(remote, cache=ShardCache(Path(cache), limit=10**9))\n"
        "for shard in load_manifest(dataset).shards:\n"
        "    print(store.read(SampleLocation(shard, 1)).key)\n"
    )
    cache = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", code, str(dataset), remote, str(cache)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000)),
        cwd=Path(__file__).parents[3],
    )
    keys = [key for key, _ in _read(ShardStore(str(dataset)), _locations(manifest)[1::4])]
    assert [line for line in done.stdout.splitlines() if ":" not in line] == keys
    assert done.stdout.count("is full or unwritable") == 1
    assert os.listdir(cache) in ([], ["lock"])


def test_without_a_cache_samples_are_requests(
    dataset: Path, manifest: Manifest, remote: str
) -> None:
    locations = _locations(manifest)[::3]
    assert _read(ShardStore(remote), locations) == _read(ShardStore(str(dataset)), locations)


def test_a_damaged_copy_is_fetched_again_and_a_damaged_shard_is_not_kept(
    dataset: Path, manifest: Manifest, remote: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    first, second, third = manifest.shards
    cache = ShardCache(tmp_path, limit=10**9)
    ShardStore(remote, cache=cache).read(SampleLocation(first, 0))
    Path(cache.path(first)).write_bytes(b"junk")
    again = ShardStore(remote, cache=cache)
    assert _read(again, _locations(manifest)[:4]) == _read(
        ShardStore(str(dataset)), _locations(manifest)[:4]
    )
    key = f"data/{second.path}"
    faulty_s3.client.put_object(Bucket=faulty_s3.bucket, Key=key, Body=bytes(second.bytes))
    faulty_s3.client.delete_object(Bucket=faulty_s3.bucket, Key=f"data/{third.path}")
    for shard in (second, third, second):
        with pytest.raises(DamagedShard, match=Path(shard.path).name):
            again.read(SampleLocation(shard, 0))
    assert _copies(cache) == {f"{first.sha256}.tar"}


def test_a_folder_that_cannot_be_made_is_unusable_and_a_lost_server_is_not_damage(
    manifest: Manifest, remote: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    shard = manifest.shards[0]
    with pytest.raises(CacheUnusable, match="Not a directory"):
        ShardCache(tmp_path / "file" / "cache", limit=10**9).add(f"{remote}/{shard.path}", shard)
    faulty_s3.fail("status", "GET", times=10**6, status=403, code="AccessDenied")
    with pytest.raises(FlowmapsrError) as refused:
        ShardStore(remote, cache=ShardCache(tmp_path, limit=10**9)).read(SampleLocation(shard, 0))
    assert not isinstance(refused.value, DamagedShard)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_a_cache_too_small_for_the_windows_is_refused(
    manifest: Manifest, run_recipe: RunMaker, tmp_path: Path
) -> None:
    recipe = run_recipe(tmp_path, stages=[WARMUP])
    draws = bucket_shares(StageSettings.model_validate(WARMUP), [manifest])
    small, remote = {"cache_gb": 1e-6}, Dataset(manifest, "s3://bucket/data")
    with pytest.raises(FlowmapsrError, match=r"cache_gb 1e-06 is too small.*cache_gb=0"):
        check_cache(recipe.model_copy(update=small), [remote], draws)
    for fine in ({"cache_gb": 0}, {"cache_gb": 0.01}):
        check_cache(recipe.model_copy(update=small | fine), [remote], draws)
    check_cache(recipe.model_copy(update=small), [Dataset(manifest, "/data")], draws)
