"""The degradation as a transform of albumentations: drawn, saved and replayed as others are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from datagen.degradation.apply import degrade
from datagen.degradation.parameters import DegradationParams
from datagen.degradation.transform import FlowMapDegradation

CHAIN = [
    {"kind": "blur", "probability": 0.5},
    {"kind": "downscale"},
    {"kind": "noise"},
    {"kind": "resize_back"},
]


def photo(index: int = 0) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (48, 40, 3), dtype=np.uint8)


def pipeline() -> A.Compose:
    return A.Compose([A.HorizontalFlip(p=0.5), FlowMapDegradation(scale=(2, 4))], seed=7)


def test_the_image_is_degraded_and_the_mask_is_the_hq() -> None:
    degradation = A.ReplayCompose([FlowMapDegradation(scale=(2, 4), chain=CHAIN)])
    made = degradation(image=photo(), mask=photo())
    assert np.array_equal(made["mask"], photo())
    drawn = DegradationParams.model_validate(made["replay"]["transforms"][0]["params"]["drawn"])
    assert 2 <= drawn.scale <= 4 and len(drawn.operations) == 4
    expected = np.rint(degrade(photo(), drawn) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(made["image"], expected)
    replay = json.loads(json.dumps(made["replay"]))
    assert np.array_equal(A.ReplayCompose.replay(replay, image=photo())["image"], expected)


def test_floats_stay_floats() -> None:
    image = photo().astype(np.float32) / 255
    result = A.Compose([FlowMapDegradation()], seed=1)(image=image)["image"]
    assert result.dtype == np.float32 and 0 <= result.min() <= result.max() <= 1


def test_a_seed_decides_and_images_differ() -> None:
    first, second = pipeline(), pipeline()
    results = [first(image=photo())["image"] for _ in range(3)]
    assert all(np.array_equal(second(image=photo())["image"], one) for one in results)
    assert not np.array_equal(results[0], results[1])


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_it_is_read_again_from_a_file(tmp_path: Path, form: str) -> None:
    original = A.Compose([FlowMapDegradation(0.5, (2, 4), CHAIN, "log_uniform")], seed=7)
    A.save(original, tmp_path / "pipeline", data_format=form)
    loaded: Any = A.load(tmp_path / "pipeline", data_format=form)
    loaded.set_random_seed(7)
    transform = loaded.transforms[0]
    assert transform.settings == original.transforms[0].settings and transform.p == 0.5
    for _ in range(4):
        expected = original(image=photo())["image"]
        assert np.array_equal(loaded(image=photo())["image"], expected)


class Photos(Dataset[torch.Tensor]):
    def __init__(self) -> None:
        self.transform = pipeline()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.transform(image=photo(index))["image"])


def test_it_works_in_the_workers_of_a_loader() -> None:
    # Not forked: this process may have threads of other tests.
    loader = DataLoader(Photos(), batch_size=3, num_workers=2, multiprocessing_context="spawn")
    batches = list(loader)
    assert [tuple(batch.shape) for batch in batches] == [(3, 48, 40, 3)] * 2
    changed = [
        not torch.equal(batch[0], torch.from_numpy(photo(3 * n))) for n, batch in enumerate(batches)
    ]
    assert all(changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (4, 2)}, "scale"),
        ({"chain": [{"kind": "downscale"}]}, "resize_back"),
        ({"chain": [{"kind": "smear"}]}, "smear"),
        ({"scale_law": "square"}, "scale_law"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowMapDegradation(**settings)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))]
)
def test_other_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="RGB images"):
        FlowMapDegradation().apply(image, {})
