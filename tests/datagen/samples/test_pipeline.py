"""A recipe's pipeline of albumentations: part of it, drawn per sample, tried at planning."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from datagen.build.in_process import build_in_process
from datagen.dataset.manifest import load_manifest
from datagen.dataset.records import DrawnSample
from datagen.dataset.shard_index import read_shard
from datagen.degradation.transform import FlowMapDegradation
from datagen.errors import FlowmapsrError
from datagen.review.recompute import recompute_samples
from datagen.review.verify import verify_dataset
from datagen.samples.pipeline import augmented, check_pipeline
from datagen.samples.sample import make_pixels
from datagen.settings import BucketSettings, DatasetRecipe, PixelBudget

RecipeMaker = Callable[..., DatasetRecipe]
BUCKETS = BucketSettings(budgets=(PixelBudget(side=64),), step=16)
GOOD = A.Compose(
    [
        A.VerticalFlip(p=0.5),
        A.OneOf([A.RandomBrightnessContrast(p=1), A.HueSaturationValue(p=1)], p=0.8),
        A.Sequential([A.RandomCrop(32, 32, p=1), A.Resize(64, 64, p=1)], p=0),
        FlowMapDegradation(p=0.3, scale=(1, 2)),
    ],
    seed=3,
)


def saved(transform: Any, file: Path) -> str:
    form = "json" if file.suffix == ".json" else "yaml"
    A.save(transform, file, data_format=form)
    return str(file)


def contents(transform: Any) -> dict[str, Any]:
    return json.loads(json.dumps(A.to_dict(transform)))


def test_a_dataset_is_made_and_made_again_without_the_file(
    recipe: RecipeMaker, tmp_path: Path
) -> None:
    file = tmp_path / "pipeline.yaml"
    asked = recipe(augmentation={"pipeline": saved(GOOD, file)}, hq_pixels="png")
    file.unlink()
    manifest = build_in_process(asked)
    other = asked.model_copy(update={"output": str(tmp_path / "threads")})
    assert build_in_process(other, threads=3).digest == manifest.digest
    assert verify_dataset(asked.output) == [] and recompute_samples(asked.output) == ([], [])
    stored = load_manifest(asked.output).dataset_recipe(str(tmp_path / "again"))
    assert build_in_process(stored).digest == manifest.digest

    names = [record.path for record in manifest.shards]
    samples = [sample for name in names for sample in read_shard(f"{asked.output}/{name}")]
    changed = 0
    for sample in samples:
        drawn = DrawnSample.model_validate_json(sample.meta)
        assert drawn.replay is not None and sample.hq_image is not None
        pixels = np.asarray(Image.open(drawn.source))
        plain = make_pixels(pixels, drawn, wanted=frozenset()).hq
        hq = np.asarray(Image.open(io.BytesIO(sample.hq_image)))
        assert np.array_equal(A.ReplayCompose.replay(drawn.replay, image=plain)["image"], hq)
        changed += not np.array_equal(hq, plain)
    assert 9 < changed <= len(samples) == 18

    flip = saved(A.Compose([A.VerticalFlip(p=1)]), tmp_path / "other.json")
    with pytest.raises(FlowmapsrError, match=r"another recipe \(augmentation\.pipeline"):
        build_in_process(recipe(augmentation={"pipeline": flip}, hq_pixels="png"))


def test_the_recipe_holds_what_the_file_says(recipe: RecipeMaker, tmp_path: Path) -> None:
    made = [
        recipe(augmentation={"pipeline": saved(GOOD, tmp_path / name)})
        for name in ("one.json", "two.yaml")
    ]
    assert made[0].digest() == made[1].digest() != recipe().digest()
    again = DatasetRecipe.model_validate_json(made[0].model_dump_json())
    assert again == made[0]
    text = Path(tmp_path / "two.yaml").read_text().replace("__version__: ", "__version__: 9.")
    Path(tmp_path / "newer.yaml").write_text(text)
    newer = recipe(augmentation={"pipeline": str(tmp_path / "newer.yaml")})
    assert newer.digest() == made[0].digest()


def test_transforms_draw_apart_from_each_other_and_from_other_samples() -> None:
    flips = contents(A.Compose([A.VerticalFlip(p=0.5), A.HorizontalFlip(p=0.5)]))
    hq = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    found = {augmented(flips, hq, seed=1, key=str(key))[0].tobytes() for key in range(40)}
    assert len(found) == 4
    assert np.array_equal(hq.ravel(), np.arange(12))


def test_long_arrays_of_a_replay_are_stored_as_their_hash() -> None:
    noise = contents(A.Compose([A.GaussNoise(p=1)]))
    hq = np.full((32, 48, 3), 100, np.uint8)
    image, replay = augmented(noise, hq, seed=1, key="a")
    params = replay["transforms"][0]["transforms"][0]["params"]
    assert params["noise_map"]["shape"] == [32, 48, 3] and len(json.dumps(replay)) < 1000
    assert np.array_equal(image, augmented(noise, hq, seed=1, key="a")[0])
    assert replay != augmented(noise, hq, seed=2, key="a")[1]


class NotTheirs(A.ImageOnlyTransform):
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        raise AssertionError("code that a file only names must not run")


LAMBDA = {
    "transform": {
        "__class_fullname__": "Compose",
        "p": 1.0,
        "transforms": [{"__class_fullname__": "Lambda", "__name__": "mine"}],
    }
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (contents(A.Compose([A.RandomCrop(32, 32, p=0.02)])), "makes 32x32x3 of uint8"),
        (contents(A.Compose([A.RandomRotate90(p=1)])), "leave out what changes the size"),
        (contents(A.ToFloat(p=1)), "of float32 of an image"),
        (LAMBDA, "Lambda cannot be serialized"),
        ({"transform": {"__class_fullname__": "Smear", "p": 1}}, "Smear is no transform"),
        ({"transform": {"__class_fullname__": "os.system", "p": 1}}, "os.system is no transform"),
        (contents(A.Compose([NotTheirs(p=1)])), "NotTheirs is no transform"),
        ({"transform": {"__class_fullname__": "Blur", "blur_limit": [7, 3, 1]}}, "cannot load"),
        (contents(A.Compose([A.MaskDropout(p=1)])), "fails on an image .* missing keys"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pipeline_that_does_not_fit_is_refused_at_planning(
    content: dict[str, Any], message: str
) -> None:
    with pytest.raises(FlowmapsrError, match=f"augmentation.pipeline: .*{message}"):
        check_pipeline(content, BUCKETS)


def test_planning_tries_the_pipeline_before_it_reads_photos(
    recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop = saved(A.Compose([A.CenterCrop(16, 16)]), tmp_path / "crop.json")
    monkeypatch.setattr("datagen.build.plan.scan.scan_and_dedupe", None)
    with pytest.raises(FlowmapsrError, match="makes 16x16x3"):
        build_in_process(recipe(augmentation={"pipeline": crop}))
    assert not Path(recipe().output, "plan.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing.yaml"),
        ("just words", "no pipeline of albumentations"),
        ("{a: [", "neither JSON nor YAML"),
        ("!!python/object/apply:os.system [exit]", "neither JSON nor YAML"),
        (yaml.safe_dump({"transforms": []}), "no pipeline of albumentations"),
        (b"\xff\xfe\x00", "is no text"),
        ("transform: {__class_fullname__: Blur, p: .nan}", "none of JSON's"),
    ],
)
def test_files_that_are_no_pipeline_are_named(
    recipe: RecipeMaker, tmp_path: Path, text: str | bytes | None, message: str
) -> None:
    file = tmp_path / "missing.yaml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValidationError, match=message) as caught:
        recipe(augmentation={"pipeline": str(file)})
    assert caught.value.errors()[0]["loc"] == ("augmentation", "pipeline")
