"""The policies for S3 suffice for the work that they are for, on a server that enforces them, and
allow nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import moto.settings
import pytest
from botocore.exceptions import ClientError

from datagen.build.in_process import build_in_process
from datagen.io import s3_client, storage
from datagen.review.verify import verify_dataset
from tests.support.launch import train
from tests.support.tiny import WARMUP, RunMaker, dataset_recipe, write_photos

POLICIES = Path(__file__).parents[3] / "infra/security/s3"
BUCKETS = ("photos", "datasets", "checkpoints", "others")
ANYTHING = """{"Version": "2012-10-17",
    "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}"""
Account = Callable[[str], Any]


@pytest.fixture
def account(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """Makes this process the user of a policy's text, and gives boto3's client of that user. The
    server, in another thread of this process, refuses from now on what a user may not do."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*s3_server))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def become(policy: str) -> Any:
        name = uuid.uuid4().hex
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        monkeypatch.setattr(s3_client, "_clients", {})
        return boto3.Session().client("s3")

    iam = boto3.client("iam", aws_access_key_id="first", aws_secret_access_key="first")
    everything = become(ANYTHING)
    iam = boto3.Session().client("iam")
    for bucket in BUCKETS:
        everything.create_bucket(Bucket=bucket)
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    yield become
    monkeypatch.undo()


def refused(s3: Any, operation: str, bucket: str, **more: object) -> bool:
    """Whether the server denies a request to the object `key`, or to the bucket."""
    where = {} if operation.startswith("list") else {"Key": "key"}
    with pytest.raises(ClientError) as refusal:
        getattr(s3, operation)(Bucket=bucket, **where, **more)
    code: str = refusal.value.response["Error"]["Code"]
    return code in ("AccessDenied", "403")


def test_each_policy_is_enough_for_its_work_and_for_nothing_else(
    account: Account, run_recipe: RunMaker, tmp_path: Path
) -> None:
    for photo in write_photos(tmp_path / "photos", 3).iterdir():
        storage.write_bytes(f"s3://photos/{photo.name}", photo.read_bytes())

    builder = account((POLICIES / "dataset-build.json").read_text())
    recipe = dataset_recipe(tmp_path, tmp_path)
    recipe = recipe.model_copy(update={"sources": ("s3://photos",), "output": "s3://datasets/set"})
    manifest = build_in_process(recipe)
    assert manifest.num_samples == 12
    assert refused(builder, "put_object", "photos", Body=b"")
    assert refused(builder, "delete_object", "photos")
    assert refused(builder, "list_objects_v2", "checkpoints")
    assert refused(builder, "get_object", "others")

    trainer = account((POLICIES / "training.json").read_text())
    stage = {**WARMUP, "steps": 4, "checkpoint_every_steps": 1}
    s3 = {"manifest": "s3://datasets/set/manifest.json", "checkpoints": "s3://checkpoints/run"}
    run = run_recipe(tmp_path / "run", stages=[stage]).model_copy(update={**s3, "workers": 1})
    train(run, tmp_path)
    assert any("step-000004" in name for name in storage.list_files("s3://checkpoints/run"))
    assert refused(trainer, "put_object", "datasets", Body=b"")
    assert refused(trainer, "delete_object", "datasets")
    assert refused(trainer, "list_objects_v2", "photos")

    reader = account((POLICIES / "reading.json").read_text())
    assert verify_dataset("s3://datasets/set") == []
    assert storage.exists("s3://checkpoints/run")
    for bucket in ("datasets", "checkpoints"):
        assert refused(reader, "put_object", bucket, Body=b"")
        assert refused(reader, "delete_object", bucket)
    assert refused(reader, "get_object", "photos")
