"""Real pairs, from the recipe to the shard: the LQ of a sample is the photographed one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from datagen.build import plan
from datagen.build.finish import pending_tasks
from datagen.build.in_process import build_in_process
from datagen.build.survey import survey
from datagen.dataset.manifest import load_manifest
from datagen.dataset.records import DrawnSample
from datagen.dataset.shard_index import read_shard
from datagen.dataset.shards import ShardSample
from datagen.errors import FlowmapsrError
from datagen.pairs.check import PairChecker
from datagen.review.inspect_sample import inspect_sample
from datagen.review.recompute import recompute_samples
from datagen.review.verify import verify_dataset
from datagen.samples.buckets import Bucket
from datagen.samples.pixels import decode_pixels
from datagen.settings import DatasetRecipe
from tests.support.pair_pictures import SHIFT, pairs_of, write_pair
from tests.support.picture_files import saved

RecipeMaker = Callable[..., DatasetRecipe]


class Pairs:
    """A folder of pairs, `<number>_HR.png` and `<number>_LR4.png`, and recipes for it."""

    def __init__(self, folder: Path, recipe: RecipeMaker) -> None:
        self.folder = folder
        self._recipe = recipe

    def add(self, number: int, *, shift: tuple[float, float] = SHIFT) -> None:
        write_pair(self.folder, number, shift=shift)

    def hq(self, number: int) -> Path:
        return self.folder / f"{number}_HR.png"

    def lq(self, number: int) -> Path:
        return self.folder / f"{number}_LR4.png"

    def recipe(self, **changes: object) -> DatasetRecipe:
        fields: dict[str, object] = {"sources": (), "pairs": pairs_of(self.folder)}
        return self._recipe(**{**fields, "max_rejected_fraction": 1.0, **changes})


@pytest.fixture
def pairs(tmp_path: Path, recipe: RecipeMaker) -> Pairs:
    folder = tmp_path / "pairs"
    folder.mkdir()
    made = Pairs(folder, recipe)
    for number in range(3):
        made.add(number)
    return made


def _samples(recipe: DatasetRecipe) -> list[ShardSample]:
    shards = load_manifest(recipe.output).shards
    return [sample for one in shards for sample in read_shard(f"{recipe.output}/{one.path}")]


def test_the_lq_of_a_sample_is_the_part_of_the_real_one_that_its_hq_shows(
    pairs: Pairs, tmp_path: Path
) -> None:
    augmentation = {"flip_probability": 0.5, "rotate90_probability": 0.7}
    stored = {"hq_pixels": "png", "lq_pixels": "full", "samples_per_photo": 4}
    asked = pairs.recipe(crop="random", augmentation=augmentation, **stored)
    manifest = build_in_process(asked)
    assert manifest.num_samples == 12 and manifest.stats.counts.jpeg_quality == (0,) * 20
    orientations = set()
    for sample in _samples(asked):
        drawn = DrawnSample.model_validate_json(sample.meta)
        assert drawn.lq is None and drawn.real_lq is not None
        found, bucket = drawn.real_lq.registration, Bucket.from_name(drawn.bucket)
        assert (found.shift_x, found.shift_y) == pytest.approx(SHIFT, abs=0.2)
        assert drawn.real_lq.source == drawn.source.replace("_HR", "_LR4")
        turned = drawn.orientation.quarter_turns % 2
        shrunk = (drawn.crop.height if turned else drawn.crop.width) / bucket.width
        assert drawn.scale == pytest.approx(max(1, found.scale / shrunk), rel=0.03)
        hq, lq = (decode_pixels(data or b"") for data in (sample.hq_image, sample.lq_image))
        assert hq is not None and lq is not None and hq.shape == lq.shape
        # A lens of the LQ blurs by half a pixel of it, the interpolation by a little more.
        blurred = cv2.GaussianBlur(hq, (0, 0), 0.6 * drawn.scale).astype(np.float32)
        inside = np.s_[8:-8, 8:-8]
        off = [np.abs(np.roll(blurred, step, 0) - lq)[inside].mean() for step in (0, -3, 3)]
        assert off[0] < 2 and off[0] < 0.7 * min(off[1:])
        orientations.add((drawn.orientation.quarter_turns, drawn.orientation.flip))
        shown = inspect_sample(asked.output, sample.key)
        assert np.abs(shown.images["lq"].astype(int) - lq).max() <= 1
    assert len(orientations) > 4
    assert verify_dataset(asked.output) == []
    assert recompute_samples(asked.output) == ([], [])
    assert Image.open(Path(asked.output, "preview.png")).size[0] == 1200
    again = build_in_process(asked.model_copy(update={"output": str(tmp_path / "b")}), threads=3)
    assert again.digest == manifest.digest


def test_pairs_that_do_not_fit_are_left_out_with_the_number_and_looked_at_when_they_change(
    pairs: Pairs,
) -> None:
    pairs.add(3, shift=(20.0, 0.0))
    pairs.add(4)
    pairs.lq(4).write_bytes(pairs.lq(4).read_bytes()[:700])
    pairs.add(5)
    pairs.lq(5).write_bytes(saved(Image.fromarray(np.zeros((45, 50, 3), np.uint8))))
    pairs.add(6)
    pairs.lq(6).unlink()
    asked = pairs.recipe(latents=("hq", "lq"))
    manifest = build_in_process(asked)
    listed = Path(asked.output, "rejected.jsonl").read_text().splitlines()
    reasons = {Path(line["uri"]).name: line["reason"] for line in map(json.loads, listed)}
    assert reasons == {
        "3_HR.png": "pair off by too much (20.0 pixels)",
        "4_HR.png": f"truncated (LQ {pairs.lq(4)})",
        "5_HR.png": "sides of the pair differ beyond the scale (240x180 and 50x45)",
        "6_HR.png": "no LQ for this HQ",
    }
    assert manifest.rejected.by_reason == {
        reason.partition(" (")[0]: 1 for reason in sorted(reasons.values())
    }
    assert verify_dataset(asked.output) == []
    assert survey(asked).complete is not None

    pairs.add(4)
    pairs.add(6)
    pairs.add(0, shift=(0.0, 0.0))  # another LQ of a pair that has samples
    found = survey(asked)
    assert {Path(file.uri).name for file in found.new} == {"0_HR.png", "4_HR.png", "6_HR.png"}
    assert found.changed == {str(pairs.hq(0))}
    grown = build_in_process(asked)
    assert grown.num_samples == manifest.num_samples + 4
    assert survey(asked).complete is not None
    assert verify_dataset(asked.output) == []
    issues, not_made = recompute_samples(asked.output)
    other = f"{pairs.lq(0)}, its LQ, is another photo now"
    assert issues == [] and {what for one in not_made for what in one.missing} <= {other}


def test_a_deep_verification_names_the_lqs_that_are_gone(pairs: Pairs, tmp_path: Path) -> None:
    asked = pairs.recipe(latents=("hq", "lq"), samples_per_photo=2)
    shards = {record.path for record in build_in_process(asked).shards}
    moved = tmp_path / "moved"
    moved.mkdir()
    for number in range(3):
        pairs.lq(number).rename(moved / pairs.lq(number).name)
    issues, not_made = recompute_samples(asked.output)
    assert issues == [] and {one.shard for one in not_made} == shards
    gone = {f"{pairs.lq(number)}, its LQ, is gone" for number in range(3)}
    assert {what for one in not_made for what in one.missing} == gone


def test_what_was_registered_is_kept_when_a_build_is_interrupted(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pairs.recipe(filters={"max_pair_offset": 3.5})
    first = plan.plan_dataset(asked)

    def registered(*_: object) -> None:
        raise AssertionError("a pair was registered again")

    monkeypatch.setattr(PairChecker, "_check", registered)
    assert pending_tasks(plan.plan_dataset(asked)) == list(first.tasks)


def test_photos_and_pairs_make_one_dataset_that_names_both(
    pairs: Pairs, photos: Path, recipe: RecipeMaker
) -> None:
    alone = recipe(output=recipe().output + "-alone")
    build_in_process(alone)
    asked = pairs.recipe(sources=(str(photos),))
    manifest = build_in_process(asked)
    assert manifest.recipe_digest == load_manifest(alone.output).recipe_digest
    assert manifest.sources == (str(photos),) and manifest.pairs == asked.pairs
    samples = {sample.key: sample for sample in _samples(asked)}
    assert all(samples[one.key].members() == one.members() for one in _samples(alone))
    assert len(samples) == len(_samples(alone)) + 6
    assert recompute_samples(asked.output) == ([], [])


def test_a_photo_that_is_used_twice_is_refused(pairs: Pairs) -> None:
    asked = pairs.recipe(sources=(str(pairs.folder),))
    with pytest.raises(FlowmapsrError, match=r"pairs\.0: .*/0_HR\.png is in sources too"):
        survey(asked)
    one = asked.pairs[0].model_dump()
    with pytest.raises(FlowmapsrError, match=r"pairs\.1: .*/0_HR\.png is in pairs\.0 too"):
        survey(pairs.recipe(pairs=[one, one]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pairs": ()}, "give at least 1 source, or pairs"),
        ({"lq_pixels": "small"}, "lq_pixels=small .* set lq_pixels=full"),
        ({"latents": ("hq", "neg")}, "leave nothing of the LQ of pairs: set lq_pixels=full"),
        ({"pairs": {"hq": "/a"}}, r"pairs\.0\.lq"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(
    tmp_path: Path, recipe: RecipeMaker, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        Pairs(tmp_path, recipe).recipe(**settings)


def test_a_pipeline_of_the_hq_alone_is_refused(tmp_path: Path, recipe: RecipeMaker) -> None:
    import albumentations

    path = tmp_path / "pipeline.json"
    albumentations.save(albumentations.Compose([albumentations.Blur()]), path)
    with pytest.raises(ValidationError, match=r"augmentation\.pipeline changes the HQ alone"):
        Pairs(tmp_path, recipe).recipe(augmentation={"pipeline": str(path)})
